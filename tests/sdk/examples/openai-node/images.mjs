// A picture, into a file.
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const client = new OpenAI();
const drawn = await client.images.generate({
  model: "diffusion",
  prompt: "a red sailboat on the sea at sunset",
  size: "512x512",
});
await writeFile("boat.png", Buffer.from(drawn.data[0].b64_json, "base64"));
