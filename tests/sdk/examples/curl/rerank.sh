# The document that answers a question best.
curl -fsS "$OPENAI_BASE_URL/rerank" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "reranker", "query": "How do I cook rice?", "top_n": 1, "return_documents": true,
       "documents": ["Interest rates rose.", "Simmer one cup of rice in two cups of water.", "A conch is a shell."]}'
