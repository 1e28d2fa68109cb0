"""The Responses API: the gateway keeps the conversation; the second answer comes as it is made."""

from openai import OpenAI

client = OpenAI()
first = client.responses.create(model="assistant", input="Count to 3")
print(first.output_text)
with client.responses.stream(model="assistant", input="Count to 5", previous_response_id=first.id) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="|", flush=True)
