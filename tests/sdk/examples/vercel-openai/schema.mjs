// An answer that keeps to a schema, as an object.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output } from "ai";
import { z } from "zod";

const Person = z.object({ name: z.string(), age: z.number().int() });

const conch = createOpenAI();
const { output } = await generateText({
  model: conch("assistant"),
  prompt: "name: Ada, age: 36",
  output: Output.object({ schema: Person }),
});
console.log(output);
