// A function that the model calls, and its answer from what the function returned.
import OpenAI from "openai";
import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

const weather = zodFunction({
  name: "get_weather",
  description: "Get the weather in a city",
  parameters: z.object({ city: z.string() }),
  function: ({ city }) => `21 degrees and sunny in ${city}`,
});

const client = new OpenAI();
const runner = client.chat.completions.runTools({
  model: "assistant",
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [weather],
});
console.log(await runner.finalContent());
