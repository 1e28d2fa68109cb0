"""An answer that keeps to a schema, as an object."""

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = OpenAI()
answer = client.chat.completions.parse(
    model="assistant", messages=[{"role": "user", "content": "name: Ada, age: 36"}], response_format=Person
)
print(answer.choices[0].message.parsed)
