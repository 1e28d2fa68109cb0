// The Responses API: the gateway keeps the conversation; the second answer comes as it is made.
import OpenAI from "openai";

const client = new OpenAI();
const first = await client.responses.create({ model: "assistant", input: "Count to 3" });
console.log(first.output_text);
const stream = client.responses.stream({ model: "assistant", input: "Count to 5", previous_response_id: first.id });
for await (const event of stream) {
  if (event.type === "response.output_text.delta") process.stdout.write(`${event.delta}|`);
}
