"""Pictures and sound between what a model's tensors hold and what a client sends or hears; each codec imported late."""


class MediaError(ValueError):
    """Bytes that are not the picture or the sound they should be; the message is one sentence, fit for a client."""
