// An answer as it is made, and what it used.
import { createOpenAI } from "@ai-sdk/openai";
import { streamText } from "ai";

const conch = createOpenAI();
const { textStream, usage } = streamText({ model: conch("assistant"), prompt: "Count to 5" });
for await (const piece of textStream) process.stdout.write(`${piece}|`);
console.log(`\n${(await usage).outputTokens} tokens`);
