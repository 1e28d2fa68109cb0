"""The tasks that a deployment can have: how its profile is bound, and what it needs that is read once from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from upstream.contract import Contract
from upstream.drawing import DrawBinding
from upstream.embedding import EmbeddingBinding
from upstream.ranking import RankBinding
from upstream.replica import Binding
from upstream.speaking import SpeechBinding, prepare_voices
from upstream.template import ChatTemplate
from upstream.text import TextBinding
from upstream.tokens import read_tokenizer
from upstream.transcribing import TranscriptionBinding


class Task(NamedTuple):
    """`bind` raises NotBound, `prepare` ValueError; both with a sentence for the operator."""

    bind: Callable[[Any, Contract], Binding]
    prepare: Callable[[Any], Any]


def _template(settings: Any) -> ChatTemplate:
    if settings.chat.template is None:
        raise ValueError("a chat model needs a template: set [models.chat] template")
    return ChatTemplate.load(Path(settings.chat.template))


def _nothing(settings: Any) -> None:
    """All that the task needs is in its binding."""


TASKS: dict[str, Task] = {
    "chat": Task(TextBinding, _template),
    "embedding": Task(EmbeddingBinding, lambda settings: read_tokenizer(settings.embedding)),
    "rerank": Task(RankBinding, lambda settings: read_tokenizer(settings.rerank)),
    "image": Task(DrawBinding, _nothing),
    "speech": Task(SpeechBinding, prepare_voices),
    "transcription": Task(TranscriptionBinding, _nothing),
}
