// What a recording says.
import { createReadStream } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI();
const heard = await client.audio.transcriptions.create({ model: "listener", file: createReadStream("train.mp3") });
console.log(heard.text);
