"""A whole answer."""

import os

from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(model="assistant", api_base=os.environ["OPENAI_BASE_URL"], is_chat_model=True)
print(model.complete("Count to 5"))
