"""Pictures and sound between what a model's tensors hold and what a client sends or hears; each codec imported late."""

from importlib.util import find_spec


class MediaError(ValueError):
    """Bytes that are not the picture or the sound they should be; the message is one sentence, fit for a client."""


def check_codecs(what: str) -> None:
    """Raises MediaError where FFmpeg is not there: the one-file build leaves it out for its size."""
    if find_spec("av") is None:
        raise MediaError(f"This build of Conch holds no audio codecs and cannot {what}.")
