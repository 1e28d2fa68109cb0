"""An answer that keeps to a schema, as an object."""

from agents import Agent, Runner, set_tracing_disabled
from pydantic import BaseModel

set_tracing_disabled(True)  # traces would go to OpenAI, with this gateway's key


class Person(BaseModel):
    name: str
    age: int


agent = Agent(name="Reader", output_type=Person, model="assistant")
print(repr(Runner.run_sync(agent, "name: Ada, age: 36").final_output))
