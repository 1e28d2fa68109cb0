// A whole answer.
import OpenAI from "openai";

const client = new OpenAI();
const answer = await client.chat.completions.create({
  model: "assistant",
  messages: [{ role: "user", content: "Count to 5" }],
});
console.log(answer.choices[0].message.content);
