"""The text that is nearest to a question."""

from openai import OpenAI

texts = ["A conch is a sea snail with a large shell.", "Interest rates rose again.", "Simmer the rice for ten minutes."]
question = "What do I do with the pot on the stove?"

client = OpenAI()
*vectors, asked = [each.embedding for each in client.embeddings.create(model="minilm", input=[*texts, question]).data]
near = [sum(x * y for x, y in zip(vector, asked, strict=True)) for vector in vectors]
print(texts[near.index(max(near))])
