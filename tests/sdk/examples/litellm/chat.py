"""A whole answer."""

import litellm

answer = litellm.completion("openai/assistant", [{"role": "user", "content": "Count to 5"}])
print(answer.choices[0].message.content)
