// An answer that keeps to a schema, as an object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output } from "ai";
import { z } from "zod";

const Person = z.object({ name: z.string(), age: z.number().int() });

const conch = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true, // or it asks for any JSON
});
const { output } = await generateText({
  model: conch("assistant"),
  prompt: "name: Ada, age: 36",
  output: Output.object({ schema: Person }),
});
console.log(output);
