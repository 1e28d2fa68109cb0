"""Speech, into a file."""

import litellm

text = "Good morning. The train to the city leaves at seven in the evening."
litellm.speech("openai/voice", text, voice="alloy").stream_to_file("train.mp3")
