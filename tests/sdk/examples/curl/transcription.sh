# What a recording says.
curl -fsS "$OPENAI_BASE_URL/audio/transcriptions" -H "Authorization: Bearer $OPENAI_API_KEY" \
  -F model=listener -F file=@train.mp3
