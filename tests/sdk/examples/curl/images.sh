# A picture, into a file: its address works for an hour.
curl -fsS "$OPENAI_BASE_URL/images/generations" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "diffusion", "prompt": "a red sailboat on the sea at sunset", "size": "512x512", "response_format": "url"}' \
  | grep -o 'http[^"]*' | xargs curl -fsS -o boat.png
