# The vector of a text.
curl -fsS "$OPENAI_BASE_URL/embeddings" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "minilm", "input": "Simmer the rice for ten minutes."}'
