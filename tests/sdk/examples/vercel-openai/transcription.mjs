// What a recording says.
import { readFile } from "node:fs/promises";
import { createOpenAI } from "@ai-sdk/openai";
import { transcribe } from "ai";

const conch = createOpenAI();
const { text } = await transcribe({ model: conch.transcription("listener"), audio: await readFile("train.mp3") });
console.log(text);
