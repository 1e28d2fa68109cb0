"""The object as it fills."""

import instructor
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = instructor.from_provider("openai/assistant")
question = {"role": "user", "content": "name: Ada, age: 36"}
for person in client.create_partial(response_model=Person, messages=[question]):
    print(repr(person), end="|", flush=True)
