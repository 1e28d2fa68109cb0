// The Responses API, which is this provider's default: a conversation, of whose answers only the ids are sent again.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";

const conch = createOpenAI();
const model = conch.responses("assistant");
const messages = [{ role: "user", content: "Count to 3" }];
const first = await generateText({ model, messages });
messages.push(...first.response.messages, { role: "user", content: "Count to 5" });
const { text } = await generateText({ model, messages });
console.log(text);
