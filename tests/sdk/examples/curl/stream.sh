# An answer as it is made, and what it used.
curl -fsSN "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "assistant", "stream": true, "stream_options": {"include_usage": true},
       "messages": [{"role": "user", "content": "Count to 5"}]}'
