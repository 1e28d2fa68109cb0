"""The same over the Responses API."""

import instructor
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = instructor.from_provider("openai/assistant", mode=instructor.Mode.RESPONSES_TOOLS)
print(repr(client.create(response_model=Person, messages=[{"role": "user", "content": "name: Ada, age: 36"}])))
