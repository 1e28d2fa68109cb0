"""The Responses API, which is this SDK's default: the gateway keeps the conversation."""

from agents import Agent, Runner, set_tracing_disabled

set_tracing_disabled(True)  # traces would go to OpenAI, with this gateway's key
agent = Agent(name="Counter", model="assistant")
first = Runner.run_sync(agent, "Count to 3")
second = Runner.run_sync(agent, "Count to 5", previous_response_id=first.last_response_id)
print(second.final_output)
