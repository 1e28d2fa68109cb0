"""Speech, into a file while it is being made."""

from openai import OpenAI

client = OpenAI()
text = "Good morning. The train to the city leaves at seven in the evening."
with client.audio.speech.with_streaming_response.create(model="voice", voice="alloy", input=text) as speech:
    speech.stream_to_file("train.mp3")
