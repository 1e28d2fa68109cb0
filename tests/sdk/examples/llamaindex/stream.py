"""An answer as it is made."""

import os

from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(model="assistant", api_base=os.environ["OPENAI_BASE_URL"], is_chat_model=True)
for part in model.stream_complete("Count to 5"):
    print(part.delta, end="|", flush=True)
