// Speech, into a file while it is being made.
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const client = new OpenAI();
const speech = await client.audio.speech.create({
  model: "voice",
  voice: "alloy",
  input: "Good morning. The train to the city leaves at seven in the evening.",
});
await writeFile("train.mp3", speech.body);
