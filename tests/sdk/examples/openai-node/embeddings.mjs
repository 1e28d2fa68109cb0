// The text that is nearest to a question.
import OpenAI from "openai";

const texts = ["A conch is a sea snail with a large shell.", "Interest rates rose again.", "Simmer the rice for ten minutes."];
const question = "What do I do with the pot on the stove?";

const client = new OpenAI();
const { data } = await client.embeddings.create({ model: "minilm", input: [...texts, question] });
const asked = data.pop().embedding;
const near = data.map(({ embedding }) => embedding.reduce((sum, x, i) => sum + x * asked[i], 0));
console.log(texts[near.indexOf(Math.max(...near))]);
