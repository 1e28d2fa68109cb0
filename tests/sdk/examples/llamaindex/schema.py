"""An answer that keeps to a schema, as an object."""

import os

from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


model = OpenAILike(
    model="assistant",
    api_base=os.environ["OPENAI_BASE_URL"],
    is_chat_model=True,
    should_use_structured_outputs=True,
)
print(repr(model.as_structured_llm(Person).complete("name: Ada, age: 36").raw))
