// A picture, into a file.
import { writeFile } from "node:fs/promises";
import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";

const conch = createOpenAI();
const { image } = await generateImage({
  model: conch.imageModel("diffusion"),
  prompt: "a red sailboat on the sea at sunset",
  size: "512x512",
});
await writeFile("boat.png", image.uint8Array);
