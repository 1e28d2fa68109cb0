"""An agent: the model calls a function and answers from what it returned."""

import asyncio
import os

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"21 degrees and sunny in {city}"


async def main() -> None:
    model = OpenAILike(
        model="assistant",
        api_base=os.environ["OPENAI_BASE_URL"],
        is_chat_model=True,
        is_function_calling_model=True,
    )
    print(await FunctionAgent(tools=[get_weather], llm=model).run("What is the weather in Paris?"))


asyncio.run(main())
