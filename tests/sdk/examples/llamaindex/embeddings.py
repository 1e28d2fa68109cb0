"""The text that is nearest to a question."""

import os

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

texts = ["A conch is a sea snail with a large shell.", "Interest rates rose again.", "Simmer the rice for ten minutes."]
vectors = OpenAILikeEmbedding(
    model_name="minilm", api_base=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
)
index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=vectors)
print(index.as_retriever(similarity_top_k=1).retrieve("What do I do with the pot on the stove?")[0].text)
