"""An answer as it is made."""

from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="assistant")
for chunk in model.stream("Count to 5"):
    print(chunk.content, end="|", flush=True)
