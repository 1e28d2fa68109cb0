"""An answer as an object of your own, by a tool that the model must call."""

import instructor
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = instructor.from_provider("openai/assistant")
print(repr(client.create(response_model=Person, messages=[{"role": "user", "content": "name: Ada, age: 36"}])))
