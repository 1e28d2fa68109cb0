"""A function that the model calls, and its answer from what the function returned."""

import json

import litellm


def get_weather(city: str) -> str:
    return f"21 degrees and sunny in {city}"


weather = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
tools = [{"type": "function", "function": weather}]
messages = [{"role": "user", "content": "What is the weather in Paris?"}]

asked = litellm.completion("openai/assistant", messages, tools=tools).choices[0].message
messages.append(asked)
for call in asked.tool_calls:
    result = get_weather(**json.loads(call.function.arguments))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
print(litellm.completion("openai/assistant", messages, tools=tools).choices[0].message.content)
