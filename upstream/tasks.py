"""The tasks that a deployment can have: how its profile is bound, and what it needs that is read once from files.

Each imports what it is made of when a model first has it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from upstream.contract import Contract

if TYPE_CHECKING:
    from upstream.replica import Binding


class Task(NamedTuple):
    """`bind` raises NotBound, `prepare` ValueError; both with a sentence for the operator."""

    bind: "Callable[[Any, Contract], Binding]"
    prepare: Callable[[Any], Any]


def _chat() -> Task:
    from upstream.template import ChatTemplate
    from upstream.text import TextBinding

    def template(settings: Any) -> ChatTemplate:
        if settings.chat.template is None:
            raise ValueError("a chat model needs a template: set [models.chat] template")
        return ChatTemplate.load(Path(settings.chat.template))

    return Task(TextBinding, template)


def _embedding() -> Task:
    from upstream.embedding import EmbeddingBinding
    from upstream.tokens import read_tokenizer

    return Task(EmbeddingBinding, lambda settings: read_tokenizer(settings.embedding))


def _rerank() -> Task:
    from upstream.ranking import RankBinding
    from upstream.tokens import read_tokenizer

    return Task(RankBinding, lambda settings: read_tokenizer(settings.rerank))


def _image() -> Task:
    from upstream.drawing import DrawBinding

    return Task(DrawBinding, _nothing)


def _speech() -> Task:
    from upstream.speaking import SpeechBinding, prepare_voices

    return Task(SpeechBinding, prepare_voices)


def _transcription() -> Task:
    from upstream.transcribing import TranscriptionBinding

    return Task(TranscriptionBinding, _nothing)


def _nothing(settings: Any) -> None:
    """All that the task needs is in its binding."""


TASKS: dict[str, Callable[[], Task]] = {
    "chat": _chat,
    "embedding": _embedding,
    "rerank": _rerank,
    "image": _image,
    "speech": _speech,
    "transcription": _transcription,
}
