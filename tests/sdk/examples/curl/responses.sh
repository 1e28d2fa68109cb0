# The Responses API, as events.
curl -fsSN "$OPENAI_BASE_URL/responses" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "assistant", "stream": true, "input": "Count to 5"}'
