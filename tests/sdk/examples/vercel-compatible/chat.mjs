// A whole answer.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const conch = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const { text } = await generateText({ model: conch("assistant"), prompt: "Count to 5" });
console.log(text);
