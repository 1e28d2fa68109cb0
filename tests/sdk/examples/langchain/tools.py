"""A function that the model calls, and its answer from what the function returned."""

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"21 degrees and sunny in {city}"


model = ChatOpenAI(model="assistant").bind_tools([get_weather])
messages = [HumanMessage("What is the weather in Paris?")]
messages.append(model.invoke(messages))
messages += [get_weather.invoke(call) for call in messages[-1].tool_calls]
print(model.invoke(messages).content)
