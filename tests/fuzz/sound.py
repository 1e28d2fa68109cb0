"""A recording, of the standard library alone: it is made in schemathesis' process as well."""

import io
import wave


def wav(seconds: float) -> bytes:
    """A tone at 16 kHz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 2, 16_000, 0, "NONE", ""))
        recording.writeframes(bytes(range(0, 250, 2)) * round(seconds * 256))
    return file.getvalue()
