"""An answer as it is made, and what it used."""

from openai import OpenAI

client = OpenAI()
question = {"role": "user", "content": "Count to 5"}
options = {"include_usage": True}
for chunk in client.chat.completions.create(
    model="assistant", messages=[question], stream=True, stream_options=options
):
    for choice in chunk.choices:
        print(choice.delta.content or "", end="|", flush=True)
    if chunk.usage:
        print(f"\n{chunk.usage.completion_tokens} tokens")
