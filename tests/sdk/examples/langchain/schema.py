"""An answer that keeps to a schema, as an object."""

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


model = ChatOpenAI(model="assistant").with_structured_output(Person)
print(model.invoke("name: Ada, age: 36"))
