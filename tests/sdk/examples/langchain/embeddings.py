"""The text that is nearest to a question."""

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings

texts = ["A conch is a sea snail with a large shell.", "Interest rates rose again.", "Simmer the rice for ten minutes."]
# Without check_embedding_ctx_length=False, LangChain fetches OpenAI's tokenizer and sends its token ids.
vectors = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False)
store = InMemoryVectorStore.from_texts(texts, vectors)
print(store.similarity_search("What do I do with the pot on the stove?", k=1)[0].page_content)
