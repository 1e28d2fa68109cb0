"""A whole answer."""

from openai import OpenAI

client = OpenAI()
answer = client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "Count to 5"}])
print(answer.choices[0].message.content)
