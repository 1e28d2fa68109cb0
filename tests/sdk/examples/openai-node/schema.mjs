// An answer that keeps to a schema, as an object.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const Person = z.object({ name: z.string(), age: z.number().int() });

const client = new OpenAI();
const answer = await client.chat.completions.parse({
  model: "assistant",
  messages: [{ role: "user", content: "name: Ada, age: 36" }],
  response_format: zodResponseFormat(Person, "person"),
});
console.log(answer.choices[0].message.parsed);
