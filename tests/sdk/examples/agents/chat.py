"""An agent's whole answer, over the Responses API."""

from agents import Agent, Runner, set_tracing_disabled

set_tracing_disabled(True)  # traces would go to OpenAI, with this gateway's key
agent = Agent(name="Counter", instructions="Count.", model="assistant")
print(Runner.run_sync(agent, "Count to 5").final_output)
