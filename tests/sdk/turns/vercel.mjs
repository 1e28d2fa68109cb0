// A second turn, after an answer with thoughts, with calls, and with an object, whole and from a stream.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const openai = createOpenAI();
const compatible = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  supportsStructuredOutputs: true,
});
const get_weather = tool({
  description: "Get the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `21 degrees and sunny in ${city}`,
});
const person = Output.object({ schema: z.object({ name: z.string(), age: z.number() }) });
const thinking = { openai: { reasoningEffort: "high" }, conch: { reasoningEffort: "high" } };
const asked = [
  ["What is the weather in Paris?", { tools: { get_weather } }],
  ["name: Ada, age: 36", { output: person }],
  ["What is Conch?", { providerOptions: thinking }],
];

for (const model of [openai("assistant"), openai.chat("assistant"), compatible("assistant")])
  for (const [content, settings] of asked) {
    const messages = [{ role: "user", content }];
    const whole = await generateText({ model, messages, ...settings });
    const streamed = streamText({ model, messages, ...settings });
    await streamed.consumeStream();
    for (const said of [whole.response.messages, (await streamed.response).messages]) {
      const next = [...messages, ...said, { role: "user", content: "Count to 3" }];
      console.log((await generateText({ model, messages: next, tools: settings.tools ?? {} })).text);
    }
  }
