"""A request that asks several models, one after another: each is held, paid and blamed as a request of its own."""

import asyncio
import time
from typing import Any, NamedTuple

from handlers.door.billing import bill
from handlers.door.errors import ApiError
from handlers.door.lifetime import Headers, Release, Request
from upstream.trace import ASKED


class Part(NamedTuple):
    """A stage's name in what is counted."""

    route: str


class Stage(Request):
    """One model's part of a request, for all that takes a request to ask a model: its own id, credits and usage.

    Whether the client is there, and what was sent, is the whole request's. All stages are settled with it, in one
    transaction. Where a later one fails, a stage is paid that is `kept`: the client has what it made.
    """

    def __init__(self, request: Request, name: str) -> None:
        self.request, self.name = request, name
        self.id = f"{request.id}-{name}"
        self.gateway, self.scope, self.path_params = request.gateway, request.scope, request.path_params
        self.connection, self.exchange = request.connection, request.exchange
        self.authority, self.take, self.unchecked = request.authority, request.take, request.unchecked
        self.started_at = request.started_at
        self.extra: dict[str, Any] = {}
        self.model = self.used = self.kept = self.bill = None
        self.endpoint = Part(f"POST /v1/pipeline/{name}")
        self.first_at = self.ended_at = 0.0
        self.stages = ()
        self._before = request.upstream_seconds
        self._asked: list[str] = []  # the servers that stages before it were sent to
        self._after: float | None = None

    def begin(self) -> None:
        """From now on an error is this stage's, and there is something to pay."""
        request = self.request
        self.started_at = time.perf_counter()
        self._before = request.upstream_seconds
        request.renamed = self._named
        for each in (request, self):  # what the one owes is settled by the other's bill
            bill(each)
        request.stages = [*request.stages, self]
        if not self._is_claimed:  # it may leave this model's queue, whatever was sent to the last one
            self._asked, request.asked = request.asked or [], []
            ASKED.set(request.asked)

    async def end(self, *, kept: bool) -> None:
        """All of it ran; `kept`: the client has it. One that has left meanwhile hears no more."""
        request = self.request
        self.ended_at, self._after = time.perf_counter(), request.upstream_seconds
        if kept:
            self.kept = self.used
        request.finishes = self._is_claimed
        request.asked = [*self._asked, *(request.asked or ())]
        if self.exchange.disconnected:
            request.leave()
            await asyncio.sleep(0)  # where it is cancelled, unless it is to finish

    def on_end(self, release: Release) -> None:
        """With the whole."""
        self.request.on_end(release)

    def keep_alive(self, headers: Headers) -> None:
        """Of the whole."""
        self.request.keep_alive(headers)

    def _named(self, error: ApiError) -> ApiError:
        error.message = f"In the stage {self.name!r}: {error.message}"
        return error

    @property
    def _is_claimed(self) -> bool:
        """Whether the whole has an idempotency key: what has begun is finished, for who asks again."""
        return self.request.bill is not None and self.request.bill.claim is not None

    @property
    def failed(self) -> int:
        """The status of the error that ended it; of one that was over, none did."""
        return 0 if self.ended_at else self.request.failed

    @property
    def refusal(self) -> ApiError | None:  # type: ignore[override]
        """How it ended, where it did not end well."""
        return None if self.ended_at else self.request.refusal

    @property
    def status(self) -> int:  # type: ignore[override]
        """Of the answer; where that is one to another stage, this one was well."""
        return 200 if self.ended_at else self.request.status

    @property
    def lasted(self) -> float:
        """Seconds until its end, or until now."""
        return (self.ended_at or time.perf_counter()) - self.started_at

    @property
    def left(self) -> bool:  # type: ignore[override]
        """As the whole."""
        return self.request.left

    @property
    def overdue(self) -> bool:  # type: ignore[override]
        """As the whole."""
        return self.request.overdue

    @property
    def asked(self) -> list[str] | None:
        """As the whole."""
        return self.request.asked

    @asked.setter
    def asked(self, value: list[str] | None) -> None:
        self.request.asked = value

    @property
    def whole(self) -> Request:
        """What it is a stage of."""
        return self.request

    @property
    def started(self) -> bool:  # type: ignore[override]
        """As the whole."""
        return self.request.started

    @property
    def place(self) -> str | None:  # type: ignore[override]
        """As the whole."""
        return self.request.place

    @property
    def finishes(self) -> bool:
        """As the whole."""
        return self.request.finishes

    @finishes.setter
    def finishes(self, value: bool) -> None:
        self.request.finishes = value

    @property
    def upstream_seconds(self) -> float:
        """Its own; the whole has the sum."""
        return (self.request.upstream_seconds if self._after is None else self._after) - self._before

    @upstream_seconds.setter
    def upstream_seconds(self, value: float) -> None:
        self.request.upstream_seconds = self._before + value
