# An answer that keeps to a schema.
curl -fsS "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "assistant", "messages": [{"role": "user", "content": "name: Ada, age: 36"}],
       "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": {
         "type": "object", "required": ["name", "age"],
         "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}}}}'
