"""The output of one response as it comes together: finished items, and the events that tell of each step."""

from collections.abc import Callable

from handlers.door.schemas.chat import Logprob
from handlers.door.schemas.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from handlers.door.schemas.responses import (
    FunctionCall,
    Message,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningText,
    Status,
)
from handlers.responses_items import item_id
from upstream.interpreter import CallArguments, CallStart, Piece, Text
from upstream.interpreter import Reasoning as Thought

Number = Callable[[], int]


class _Open:
    """An item that is being made."""

    def __init__(self, id: str, index: int, number: Number) -> None:
        self.id, self.index, self.number = id, index, number
        self.text = ""

    def begin(self) -> list[Event]:
        raise NotImplementedError

    def add(self, text: str, logprobs: list[Logprob]) -> Event:
        raise NotImplementedError

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        raise NotImplementedError


class _Message(_Open):
    """Words for the user."""

    def __init__(self, id: str, index: int, number: Number) -> None:
        super().__init__(f"msg_{id}", index, number)
        self._logprobs: list[Logprob] = []

    def begin(self) -> list[Event]:
        return [
            ItemAdded(self.number(), self.index, Message("assistant", [], self.id, "in_progress")),
            PartAdded(self.number(), self.id, self.index, 0, OutputText("")),
        ]

    def add(self, text: str, logprobs: list[Logprob]) -> Event:
        self.text += text
        self._logprobs += logprobs
        return TextDelta(self.number(), self.id, self.index, 0, text, logprobs)

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        part = OutputText(self.text, [], self._logprobs)
        item = Message("assistant", [part], self.id, status)
        return item, [
            TextDone(self.number(), self.id, self.index, 0, self.text, self._logprobs),
            PartDone(self.number(), self.id, self.index, 0, part),
            ItemDone(self.number(), self.index, item),
        ]


class _Reasoning(_Open):
    """What the model thinks."""

    def __init__(self, id: str, index: int, number: Number) -> None:
        super().__init__(f"rs_{id}", index, number)

    def begin(self) -> list[Event]:
        return [
            ItemAdded(self.number(), self.index, Reasoning([], [], self.id, "in_progress")),
            PartAdded(self.number(), self.id, self.index, 0, ReasoningText("")),
        ]

    def add(self, text: str, logprobs: list[Logprob]) -> Event:
        self.text += text
        return ReasoningDelta(self.number(), self.id, self.index, 0, text)

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        part = ReasoningText(self.text)
        item = Reasoning([], [part], self.id, status)
        return item, [
            ReasoningDone(self.number(), self.id, self.index, 0, self.text),
            PartDone(self.number(), self.id, self.index, 0, part),
            ItemDone(self.number(), self.index, item),
        ]


class _Call(_Open):
    """A function call; its text is the arguments."""

    def __init__(self, id: str, index: int, number: Number, start: CallStart) -> None:
        super().__init__(f"fc_{id}", index, number)
        self._start = start

    def begin(self) -> list[Event]:
        return [ItemAdded(self.number(), self.index, self._item("in_progress"))]

    def add(self, text: str, logprobs: list[Logprob]) -> Event:
        self.text += text
        return ArgumentsDelta(self.number(), self.id, self.index, text)

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        return item, [
            ArgumentsDone(self.number(), self.id, self.index, self._start.name, self.text),
            ItemDone(self.number(), self.index, item),
        ]

    def _item(self, status: Status) -> FunctionCall:
        return FunctionCall(self._start.id, self._start.name, self.text, self.id, status)


class Output:
    """`items` are the finished ones; `number` gives the next event its place. Their ids tell the response's."""

    def __init__(self, response: str) -> None:
        self._response = response
        self.items: list[OutputItem] = []
        self._told = 0
        self._open: _Open | None = None

    def number(self) -> int:
        """The next event's."""
        self._told += 1
        return self._told - 1

    def add(self, piece: Piece, logprobs: list[Logprob]) -> list[Event]:
        """The events of one piece. One of another kind than the piece before ends that item and begins the next."""
        index = len(self.items) + (self._open is not None)
        id = item_id(self._response, index)
        if isinstance(piece, CallStart):
            return self._begin(_Call(id, index, self.number, piece))
        events: list[Event] = []
        if isinstance(piece, Text) and not isinstance(self._open, _Message):
            events = self._begin(_Message(id, index, self.number))
        elif isinstance(piece, Thought) and not isinstance(self._open, _Reasoning):
            events = self._begin(_Reasoning(id, index, self.number))
        assert self._open is not None, "a call begins before its arguments"
        text = piece.fragment if isinstance(piece, CallArguments) else piece.text
        events.append(self._open.add(text, logprobs))
        return events

    def finish(self, status: Status) -> list[Event]:
        """The events of the end; an answer without any words is an empty message."""
        events = self.end(status)
        if not self.items:
            events = [*self._begin(_Message(item_id(self._response, 0), 0, self.number)), *self.end(status)]
        return events

    def end(self, status: Status) -> list[Event]:
        """The events that end what is open."""
        if self._open is None:
            return []
        item, events = self._open.end(status)
        self.items.append(item)
        self._open = None
        return events

    def _begin(self, item: _Open) -> list[Event]:
        events = self.end("completed")
        self._open = item
        return events + item.begin()
