"""The document that answers a question best."""

import os

import litellm

documents = ["Interest rates rose.", "Simmer one cup of rice in two cups of water.", "A conch is a shell."]
ranked = litellm.rerank(
    "hosted_vllm/reranker",
    "How do I cook rice?",
    documents,
    top_n=1,
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
)
print(documents[ranked.results[0]["index"]])
