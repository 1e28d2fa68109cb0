# Speech, into a file.
curl -fsS "$OPENAI_BASE_URL/audio/speech" -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" \
  -d '{"model": "voice", "voice": "alloy", "input": "Good morning. The train to the city leaves at seven in the evening."}' \
  -o train.mp3
