// An answer as it is made, and what it used.
import OpenAI from "openai";

const client = new OpenAI();
const stream = await client.chat.completions.create({
  model: "assistant",
  messages: [{ role: "user", content: "Count to 5" }],
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  for (const choice of chunk.choices) process.stdout.write(`${choice.delta.content ?? ""}|`);
  if (chunk.usage) console.log(`\n${chunk.usage.completion_tokens} tokens`);
}
