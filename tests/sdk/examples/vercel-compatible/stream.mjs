// An answer as it is made, and what it used.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const conch = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
});
const { textStream, usage } = streamText({ model: conch("assistant"), prompt: "Count to 5" });
for await (const piece of textStream) process.stdout.write(`${piece}|`);
console.log(`\n${(await usage).outputTokens} tokens`);
