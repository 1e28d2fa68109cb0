// A second turn, after each kind of answer that the SDK gives, told again as it is.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const model = "assistant";
const parameters = z.object({ city: z.string() });
const Person = z.object({ name: z.string(), age: z.number() });
const weather = { role: "user", content: "What is the weather in Paris?" };
const ada = { role: "user", content: "name: Ada, age: 36" };
const thanks = { role: "user", content: "Count to 3" };

async function chat(asked, message, settings = {}) {
  const results = (message.tool_calls ?? []).map(({ id }) => ({ role: "tool", tool_call_id: id, content: "21 degrees" }));
  const messages = [asked, message, ...results, thanks];
  const again = await client.chat.completions.create({ model, messages, ...settings });
  console.log("chat", again.choices[0].message.content);
}

const typed = zodFunction({ name: "get_weather", parameters });
const plain = { type: "function", function: { ...typed.function, strict: false } };
for (const tools of [[typed], [plain]])
  await chat(weather, await client.chat.completions.stream({ model, messages: [weather], tools }).finalMessage(), { tools });
const calls = await client.chat.completions.parse({ model, messages: [weather], tools: [typed] });
await chat(weather, calls.choices[0].message, { tools: [typed] });
const formed = { model, messages: [ada], response_format: zodResponseFormat(Person, "person") };
await chat(ada, await client.chat.completions.stream(formed).finalMessage());
await chat(ada, (await client.chat.completions.parse(formed)).choices[0].message);

async function respond(asked, answer, settings = {}) {
  const calls = answer.output.filter((item) => item.type === "function_call");
  const results = calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output: "21 degrees" }));
  const input = [asked, ...answer.output, ...results, thanks];
  const again = await client.responses.create({ model, input, store: false, ...settings });
  console.log("responses", again.output_text);
}

const tools = [zodResponsesFunction({ name: "get_weather", parameters })];
await respond(weather, await client.responses.create({ model, input: [weather], tools }), { tools });
await respond(weather, await client.responses.parse({ model, input: [weather], tools }), { tools });
await respond(weather, await client.responses.stream({ model, input: [weather], tools }).finalResponse(), { tools });
const text = { format: zodTextFormat(Person, "person") };
await respond(ada, await client.responses.parse({ model, input: [ada], text }));
await respond(ada, await client.responses.stream({ model, input: [ada], text }).finalResponse());
await respond(ada, await client.responses.create({ model, input: [ada], reasoning: { effort: "high" } }));
