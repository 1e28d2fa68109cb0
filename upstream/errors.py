"""What can go wrong between Conch and a model server: one small hierarchy, all of it UpstreamError."""

import re
from typing import ClassVar, Literal

Phase = Literal["connect", "head", "body", "silence"]

# What vLLM and TensorRT-LLM say of a prompt that does not fit; Triton of a queue, and of a model that it does not have.
_OUT_OF_RANGE = re.compile(
    r"\b(temperature|top_p|top_k|min_p|repetition_penalty|presence_penalty|frequency_penalty|max_tokens|seed|n|speed|steps)"
    r" (must be [^;\n]{1,80}?)(?:, got.*|\.(?:\s|$)|[;\n]|$)"
)
_UNKNOWN = re.compile(r"\bunknown (language|voice)\b", re.IGNORECASE)
_BAD_GUIDE = re.compile(r"structured.?output|guided.?decoding|json.?schema|grammar", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"longer than the maximum|maximum (context|model|input|sequence) length|max_(seq|input)_len",
    re.IGNORECASE,
)
_BUSY = re.compile(r"exceeds maximum queue size|request timeout expired", re.IGNORECASE)
_ABSENT = re.compile(
    r"unknown model|is not found|no available versions|is not ready|server not ready|server is stopping", re.IGNORECASE
)
# What Triton's core says before a model sees the request: these words and no others around them.
_NOT_BEGUN = re.compile(
    r"(\[request id: [^\]]*\] )?(Exceeds maximum queue size$|Request for unknown model\b|Server not ready$"
    r"|Server is stopping, scheduler for model has stopped accepting)"
)


class UpstreamError(Exception):
    """Root. `str(error)` is for the log and may name an address; `public` is a sentence that a client may see.

    `sent` says whether the request could have run: where it is False, another server may be tried. `of_server` says
    whether such errors in a row mean that the server is not well.
    """

    public: ClassVar[str] = "The model's server failed to answer this request."
    sent: bool = True
    of_server: bool = True


class ConnectFailed(UpstreamError):
    """No connection was made, so nothing was sent."""

    public = "The model's server cannot be reached at the moment."
    sent = False


class Broken(UpstreamError):
    """The connection ended before the answer did, after bytes of the request were sent."""

    public = "The model's server broke off before its answer was complete."


class Closed(Broken):
    """It was closed here, while it was still read."""

    of_server = False


class DeadlinePassed(UpstreamError):
    """Time ran out: while connecting, before the answer's head, within its body, or in a silence too long."""

    public = "The model did not answer in time."

    def __init__(self, phase: Phase, message: str) -> None:
        super().__init__(message)
        self.phase: Phase = phase
        self.sent = self.of_server = phase != "connect"


class ReplyTooLarge(UpstreamError):
    """The answer is larger than the caller's limit."""

    public = "The model's answer is too large."


class BadReply(UpstreamError):
    """The answer is not what the protocol allows."""

    public = "The model's server sent an answer that cannot be understood."


class ModelFailed(UpstreamError):
    """Triton, or the model in it, answered with an error."""

    public = "The model failed on this request."


class Unavailable(UpstreamError):
    """No server has the model ready, or its queue is full. `retry_after` is in whole seconds.

    `absent`: the server that said so does not have the model.
    """

    public = "The model is not available at the moment."
    of_server = False

    def __init__(self, message: str, retry_after: int = 30, *, sent: bool = False, absent: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.sent = sent
        self.absent = absent


class QueueFull(Unavailable):
    """As many requests as may wait for the model do so already."""

    public = "Too many requests are waiting for this model; try again in a moment."


class Loading(Unavailable):
    """The model was not in memory and is being loaded."""

    public = "The model is being loaded; try again in half a minute."


class ContextExceeded(UpstreamError):
    """The prompt, with what it may make, is longer than the model's context."""

    of_server = False
    public = "The prompt is longer than this model's context allows; shorten it, or ask for fewer tokens."


class Unsupported(UpstreamError):
    """The deployment cannot honour a field as asked: `source` names it, the message says what it would take."""

    sent = False
    of_server = False

    def __init__(self, source: str, message: str) -> None:
        super().__init__(message)
        self.source = source


def failure(message: str, source: str, *, busy: bool = False, absent: bool = False) -> UpstreamError:
    """What an error of Triton's means, by its words; `busy` and `absent` say what its code tells already.

    `source` goes before the message in the log.
    """
    text = f"{source}: {message}"
    if _TOO_LONG.search(message):
        return ContextExceeded(text)
    if field := _OUT_OF_RANGE.search(message):
        return Unsupported(field[1], f"the model says that {field[1]} {field[2]}")
    if unknown := _UNKNOWN.search(message):
        return Unsupported(unknown[1], f"the model does not know this {unknown[1]}")
    if _BAD_GUIDE.search(message):
        return Unsupported("json_schema", "the model cannot keep to this schema; simplify it")
    sent = _NOT_BEGUN.match(message) is None
    if absent or _ABSENT.search(message):
        return Unavailable(text, sent=sent, absent=not sent)
    if busy or _BUSY.search(message):
        return Unavailable(text, retry_after=1, sent=sent)
    return ModelFailed(text)
