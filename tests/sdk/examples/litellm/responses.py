"""The Responses API: the gateway keeps the conversation."""

import litellm

first = litellm.responses(model="openai/assistant", input="Count to 3")
second = litellm.responses(model="openai/assistant", input="Count to 5", previous_response_id=first.id)
print(second.output_text)
