// A whole answer.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";

const conch = createOpenAI();
const { text } = await generateText({ model: conch("assistant"), prompt: "Count to 5" });
console.log(text);
