"""A function that the agent calls, here over chat completions."""

from agents import Agent, Runner, function_tool, set_default_openai_api, set_tracing_disabled

set_tracing_disabled(True)  # traces would go to OpenAI, with this gateway's key
set_default_openai_api("chat_completions")  # or without this line over the Responses API


@function_tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"21 degrees and sunny in {city}"


agent = Agent(name="Weather", tools=[get_weather], model="assistant")
print(Runner.run_sync(agent, "What is the weather in Paris?").final_output)
