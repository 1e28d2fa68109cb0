// A function that the model calls, and its answer from what the function returned.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, tool } from "ai";
import { z } from "zod";

const get_weather = tool({
  description: "Get the weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `21 degrees and sunny in ${city}`,
});

const conch = createOpenAI();
const { text } = await generateText({
  model: conch("assistant"),
  prompt: "What is the weather in Paris?",
  tools: { get_weather },
  stopWhen: stepCountIs(2),
});
console.log(text);
