"""The Responses API: the gateway keeps the conversation."""

import os

from llama_index.llms.openai import OpenAIResponses

model = OpenAIResponses(
    model="assistant", api_base=os.environ["OPENAI_BASE_URL"], context_window=8192, track_previous_responses=True
)
model.complete("Count to 3")
print(model.complete("Count to 5"))
