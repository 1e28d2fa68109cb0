// The Responses API, which is this provider's default: the gateway keeps the conversation.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";

const conch = createOpenAI();
const model = conch.responses("assistant");
const first = await generateText({ model, prompt: "Count to 3" });
const { text } = await generateText({
  model,
  prompt: "Count to 5",
  providerOptions: { openai: { previousResponseId: first.providerMetadata.openai.responseId } },
});
console.log(text);
