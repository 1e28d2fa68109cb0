"""A second turn, after each kind of answer that the SDK gives, told again in each way that it can be."""

from typing import Any

import openai
from openai import OpenAI
from pydantic import BaseModel


class Weather(BaseModel):
    """Get the weather in a city"""

    city: str


class Person(BaseModel):
    name: str
    age: int


client = OpenAI(max_retries=0)
typed = openai.pydantic_function_tool(Weather, name="get_weather")
plain: Any = {"type": "function", "function": {"name": "get_weather", "parameters": Weather.model_json_schema()}}
weather: Any = {"role": "user", "content": "What is the weather in Paris?"}
ada: Any = {"role": "user", "content": "name: Ada, age: 36"}
thanks: Any = {"role": "user", "content": "Count to 3"}


def ways(said: BaseModel) -> list[Any]:
    """An answer as it can be sent again."""
    return [said, said.model_dump(warnings=False), said.model_dump(exclude_none=True, warnings=False)]


def chat(asked: Any, message: Any, **settings: Any) -> None:
    results = [{"role": "tool", "tool_call_id": c.id, "content": "21 degrees"} for c in message.tool_calls or ()]
    for told in ways(message):
        again = client.chat.completions.create(model="assistant", messages=[asked, told, *results, thanks], **settings)
        print("chat", again.choices[0].message.content)


def streamed(**settings: Any) -> Any:
    with client.chat.completions.stream(model="assistant", **settings) as stream:
        return stream.get_final_completion().choices[0].message


for tool in (typed, plain):
    chat(weather, streamed(messages=[weather], tools=[tool]), tools=[tool])
calls = client.chat.completions.parse(model="assistant", messages=[weather], tools=[typed])
chat(weather, calls.choices[0].message, tools=[typed])
chat(ada, streamed(messages=[ada], response_format=Person))
person = client.chat.completions.parse(model="assistant", messages=[ada], response_format=Person)
assert person.choices[0].message.parsed == Person(name="Ada", age=36)
chat(ada, person.choices[0].message)


def respond(asked: Any, answer: Any, **settings: Any) -> None:
    calls = [item.call_id for item in answer.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call, "output": "21 degrees"} for call in calls]
    for output in zip(*map(ways, answer.output), strict=True):
        again = client.responses.create(
            model="assistant", input=[asked, *output, *results, thanks], store=False, **settings
        )
        print("responses", again.output_text)


def events(**settings: Any) -> Any:
    with client.responses.stream(model="assistant", **settings) as stream:
        return stream.get_final_response()


flat: Any = {"type": "function", **typed["function"]}
respond(weather, client.responses.create(model="assistant", input=[weather], tools=[flat]), tools=[flat])
respond(weather, client.responses.parse(model="assistant", input=[weather], tools=[typed]), tools=[flat])
respond(weather, events(input=[weather], tools=[typed]), tools=[flat])
respond(ada, client.responses.parse(model="assistant", input=[ada], text_format=Person))
respond(ada, events(input=[ada], text_format=Person))
thought = client.responses.create(model="assistant", input=[ada], reasoning={"effort": "high"})
assert [item.type for item in thought.output] == ["reasoning", "message"]
respond(ada, thought)
