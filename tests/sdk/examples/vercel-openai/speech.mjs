// Speech, into a file.
import { writeFile } from "node:fs/promises";
import { createOpenAI } from "@ai-sdk/openai";
import { generateSpeech } from "ai";

const conch = createOpenAI();
const { audio } = await generateSpeech({
  model: conch.speech("voice"),
  voice: "alloy",
  text: "Good morning. The train to the city leaves at seven in the evening.",
});
await writeFile("train.mp3", audio.uint8Array);
