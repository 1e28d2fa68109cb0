// The text that is nearest to a question.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { cosineSimilarity, embed, embedMany } from "ai";

const texts = ["A conch is a sea snail with a large shell.", "Interest rates rose again.", "Simmer the rice for ten minutes."];

const conch = createOpenAICompatible({
  name: "conch",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const model = conch.embeddingModel("minilm");
const { embeddings } = await embedMany({ model, values: texts });
const { embedding } = await embed({ model, value: "What do I do with the pot on the stove?" });
const near = embeddings.map((each) => cosineSimilarity(each, embedding));
console.log(texts[near.indexOf(Math.max(...near))]);
