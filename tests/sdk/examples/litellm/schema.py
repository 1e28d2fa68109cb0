"""An answer that keeps to a schema."""

import litellm
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


question = {"role": "user", "content": "name: Ada, age: 36"}
answer = litellm.completion("openai/assistant", [question], response_format=Person)
print(repr(Person.model_validate_json(answer.choices[0].message.content)))
