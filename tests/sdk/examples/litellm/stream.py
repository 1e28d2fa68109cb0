"""An answer as it is made, and what it used."""

import litellm

question = {"role": "user", "content": "Count to 5"}
options = {"include_usage": True}
for chunk in litellm.completion("openai/assistant", [question], stream=True, stream_options=options):
    print(chunk.choices[0].delta.content or "", end="|", flush=True)
    if "usage" in chunk:
        print(f"\n{chunk.usage.completion_tokens} tokens")
