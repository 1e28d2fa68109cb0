"""A second turn, after an answer with thoughts, with calls, and with an object, whole and from a stream."""

from functools import reduce
from operator import add
from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"21 degrees and sunny in {city}"


def turns(model: Any, asked: str) -> None:
    for said in (model.invoke(asked), reduce(add, model.stream(asked))):
        results = [get_weather.invoke(call) for call in said.tool_calls]
        print(model.invoke([("human", asked), said, *results, ("human", "Count to 3")]).text)


for settings in ({}, {"use_responses_api": True}, {"use_responses_api": True, "output_version": "responses/v1"}):
    turns(ChatOpenAI(model="assistant", **settings).bind_tools([get_weather]), "What is the weather in Paris?")
    turns(ChatOpenAI(model="assistant", reasoning_effort="high", **settings), "What is Conch?")
    formed = ChatOpenAI(model="assistant", **settings).with_structured_output(Person, include_raw=True)
    raw = formed.invoke("name: Ada, age: 36")["raw"]
    print(ChatOpenAI(model="assistant", **settings).invoke([("human", "Ada, 36"), raw, ("human", "Count to 3")]).text)
