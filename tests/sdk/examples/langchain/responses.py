"""The Responses API: the gateway keeps the conversation."""

from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="assistant", use_responses_api=True, use_previous_response_id=True)
first = model.invoke("Count to 3")
print(first.text)
for chunk in model.stream([("human", "Count to 3"), first, ("human", "Count to 5")]):
    print(chunk.text, end="|", flush=True)
