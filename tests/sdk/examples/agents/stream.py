"""An agent's answer as it is made, over the Responses API."""

import asyncio

from agents import Agent, Runner, set_tracing_disabled

set_tracing_disabled(True)  # traces would go to OpenAI, with this gateway's key


async def main() -> None:
    agent = Agent(name="Counter", instructions="Count.", model="assistant")
    async for event in Runner.run_streamed(agent, "Count to 5").stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            print(event.data.delta, end="|", flush=True)


asyncio.run(main())
