"""A whole answer."""

from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="assistant")
print(model.invoke("Count to 5").content)
