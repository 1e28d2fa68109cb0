"""The tasks that a deployment can have: how its profile is bound, and what it needs that is read once from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from upstream.contract import Contract
from upstream.replica import Binding
from upstream.template import ChatTemplate
from upstream.text import TextBinding


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
}
