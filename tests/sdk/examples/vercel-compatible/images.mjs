// A picture, into a file.
import { writeFile } from "node:fs/promises";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const conch = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const { image } = await generateImage({
  model: conch.imageModel("diffusion"),
  prompt: "a red sailboat on the sea at sunset",
  size: "512x512",
});
await writeFile("boat.png", image.uint8Array);
