"""Counts what has happened: a few additions to shared memory for each request, at places that are looked up once."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from handlers.door.errors import ApiError, DeploymentFailed, RateLimited, TimedOut
from handlers.seeing import families
from handlers.seeing.cells import Row
from handlers.seeing.families import COUNTS, EACH, FAMILIES, FIRST, LOAD, LONG, SHORT, Family, series
from store.teller import OUTCOMES
from upstream.queue import Watcher

if TYPE_CHECKING:
    from config import Model
    from handlers.door.lifetime import Endpoint, Request
    from store.records import Units

PROVIDER = "triton"
OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
"""gen_ai.operation.name where it is not the task: chat, rerank, image, speech, transcription."""
LIMITS = ("rate_limit_exceeded", "concurrency_limit_exceeded")
NO_CREDITS = ("insufficient_credits", "plan_limit_exceeded")
LOAD_OUTCOMES = ("loaded", "failed")
LEFT = 499, "client_disconnected"
NANO = 1_000_000_000


class Counted:
    """Where the cells of one endpoint's requests for one model are. Of no model, they are only counted."""

    __slots__ = (
        *("_endings", "_row", "charged", "duration", "first_token", "input", "labels", "model", "ok", "output"),
        *("overhead", "per_token", "route", "upstream"),
    )

    def __init__(self, row: Row, route: str, model: str | None, task: str) -> None:
        method, _, endpoint = route.partition(" ")
        self._row = row
        self._endings: dict[tuple[int, str], int] = {}
        self.model = model
        self.route = {"endpoint": endpoint, "method": method, "model": model or ""}
        self.ok = self.ending(200, "")
        if model is None:
            return
        self.labels = {
            "gen_ai_operation_name": OPERATIONS.get(endpoint, task),
            "gen_ai_provider_name": PROVIDER,
            "gen_ai_request_model": model,
        }
        self.duration = self.place(families.DURATION, **self.labels)
        self.overhead = self.place(families.OVERHEAD, endpoint=endpoint, model=model)
        self.upstream = self.place(families.UPSTREAM, model=model)
        self.charged = self.place(families.CHARGED, model=model)
        if task in ("chat", "embedding", "rerank"):
            self.input = self.place(families.TOKENS, **self.labels, gen_ai_token_type="input")
        if task == "chat":
            self.output = self.place(families.TOKENS, **self.labels, gen_ai_token_type="output")
            self.first_token = self.place(families.FIRST_TOKEN, **self.labels)
            self.per_token = self.place(families.PER_TOKEN, **self.labels)

    def place(self, family: Family, **labels: str) -> int:
        """Where a series begins."""
        return self._row.place(series(family, **labels), family.cells)

    def ending(self, status: int, code: str) -> int:
        """The cell of requests that ended so."""
        index = self._endings.get((status, code))
        if index is None:
            index = self.place(families.REQUESTS, **self.route, status=str(status), code=code)
            self._endings[status, code] = index
        return index


class Metrics(Watcher):
    """What one process adds to its row. What is slow happens in a scrape, not here."""

    def __init__(self, row: Row, tasks: Mapping[str, str]) -> None:
        """`tasks`: that of each model, by its id."""
        row.claim()
        self.cells = row.cells
        self._row = row
        self._tasks = tasks
        self._counted: dict[Endpoint | None, dict[str | None, Counted]] = {}
        self._in_flight, self._away, self._owed = (
            row.place(series(family)) for family in (families.IN_FLIGHT, families.AWAY, families.OWED)
        )
        for name, index, _ in row:
            if FAMILIES[name.partition("{")[0]].kind == "gauge":
                self.cells[index] = 0  # what a process before this one left
        for family, reasons in ((families.RATE_LIMITED, LIMITS), (families.REFUSED, NO_CREDITS)):
            for reason in reasons:  # there from the start: an increase from nothing cannot be seen
                row.place(series(family, reason=reason))
        self._asks = row.place(series(families.ASKS))
        self._transactions = {
            outcome: row.place(series(families.TRANSACTION, outcome=outcome), families.TRANSACTION.cells)
            for outcome in OUTCOMES
        }

    def learn(self, models: Iterable["Model"]) -> None:
        """What can be waited for at these is there from the start, as an increase from nothing cannot be seen."""
        for model in models:
            if model.max_inflight is not None:
                for family in (families.QUEUE, families.QUEUED, families.TURNED_AWAY):
                    self._at_model(family, model.id)
            if model.autoload:
                self._at_model(families.COLD_START, model.id)
                for outcome in LOAD_OUTCOMES:
                    self._at_model(families.LOADS, model.id, outcome)
            if model.idle_unload is not None:
                self._at_model(families.UNLOADS, model.id)
            self._at_model(families.RETRIES, model.id)

    def queued(self, model: str) -> None:
        self.cells[self._at_model(families.QUEUED, model)] += 1

    def unqueued(self, model: str, seconds: float) -> None:
        self.cells[self._at_model(families.QUEUED, model)] -= 1
        _observe(self.cells, self._at_model(families.QUEUE, model), LONG, seconds)

    def turned_away(self, model: str) -> None:
        self.cells[self._at_model(families.TURNED_AWAY, model)] += 1

    def woken(self, model: str, seconds: float) -> None:
        _observe(self.cells, self._at_model(families.COLD_START, model), LOAD, seconds)

    def loaded(self, model: str, seconds: float, outcome: str) -> None:
        _observe(self.cells, self._at_model(families.LOADS, model, outcome), LOAD, seconds)

    def unloaded(self, model: str) -> None:
        self.cells[self._at_model(families.UNLOADS, model)] += 1

    def retried(self, model: str) -> None:
        self.cells[self._at_model(families.RETRIES, model)] += 1

    def refused(self, error: ApiError) -> None:
        """A request was refused before it was one: of its head, nothing is believed."""
        labels = {"endpoint": "other", "method": "other", "status": str(error.status), "code": error.code or error.type}
        self.cells[self._row.place(series(families.REQUESTS, **labels))] += 1

    def began(self) -> None:
        """A request has come."""
        self.cells[self._in_flight] += 1

    def ended(self, request: "Request", now: float) -> None:
        """A request has ended, at a perf_counter()."""
        self.cells[self._in_flight] -= 1
        self.count(request, now)

    def count(self, request: "Request", now: float) -> None:
        """What a request was, or a stage of one, that ended at a perf_counter()."""
        cells = self.cells
        try:
            counted = self._counted[request.endpoint][request.model]
        except KeyError:
            counted = self._count(request)
        total, upstream = now - request.started_at, request.upstream_seconds
        whole = request.refusal is None and request.status == 200
        if whole:
            cells[counted.ok] += 1
        else:
            self._note_failure(request, counted, total)
        if counted.model is None:
            return
        if whole:
            _observe(cells, counted.duration, LONG, total)
        _observe(cells, counted.overhead, SHORT, total - upstream)
        if upstream:
            _observe(cells, counted.upstream, LONG, upstream)
        usage = request.bill.usage if request.bill is not None else None
        if usage is not None:
            units = usage.units
            self._count_units(counted, units)
            if usage.cost:
                cells[counted.charged] += usage.cost / NANO
            if whole and request.first_at and units.output_tokens:
                _observe(cells, counted.first_token, FIRST, request.first_at - request.started_at)
                if units.output_tokens > 1:
                    _observe(cells, counted.per_token, EACH, (now - request.first_at) / (units.output_tokens - 1))

    def transacted(self, seconds: float, asks: int, outcome: str, owed: int) -> None:
        """The store's teller has ended a transaction; `outcome` is one of its OUTCOMES."""
        cells = self.cells
        _observe(cells, self._transactions[outcome], SHORT, seconds)
        cells[self._asks] += asks
        cells[self._owed] = owed
        cells[self._away] = outcome == "unavailable"

    def _count(self, request: "Request") -> Counted:
        endpoint, model = request.endpoint, request.model
        route = endpoint.route if endpoint is not None else "other other"
        counted = Counted(self._row, route, model, self._tasks[model] if model is not None else "")
        self._counted.setdefault(endpoint, {})[model] = counted
        return counted

    def _note_failure(self, request: "Request", counted: Counted, total: float) -> None:
        cells, refusal = self.cells, request.refusal
        status, code = ending(request)
        cells[counted.ending(status, code)] += 1
        if counted.model is not None:
            index = counted.place(families.DURATION, **counted.labels, error_type=code)
            _observe(cells, index, LONG, total)
        if request.left or refusal is None or request.stages:  # of several models, the one's whose fault it is
            return
        if isinstance(refusal, DeploymentFailed | TimedOut):
            cells[counted.place(families.UPSTREAM_ERRORS, model=counted.model or "", code=code)] += 1
        elif isinstance(refusal, RateLimited):
            cells[counted.place(families.RATE_LIMITED, reason=code)] += 1
        elif code in NO_CREDITS:
            cells[counted.place(families.REFUSED, reason=code)] += 1

    def _count_units(self, counted: Counted, units: "Units") -> None:
        cells = self.cells
        if units.input_tokens:
            _observe(cells, counted.input, COUNTS, units.input_tokens)
        if units.output_tokens:
            _observe(cells, counted.output, COUNTS, units.output_tokens)
        elif not units.input_tokens:
            self._count_media(counted, units)
        if units.cached_tokens:
            cells[self._of_model(families.CACHED, counted)] += units.cached_tokens

    def _count_media(self, counted: Counted, units: "Units") -> None:
        for family, amount in (
            (families.IMAGES, units.images),
            (families.CHARACTERS, units.characters),
            (families.SOUND, units.milliseconds / 1000),
        ):
            if amount:
                self.cells[self._of_model(family, counted)] += amount

    def _at_model(self, family: Family, model: str, outcome: str = "") -> int:
        return self._row.place(series(family, model=model, outcome=outcome), family.cells)

    def _of_model(self, family: Family, counted: Counted) -> int:
        assert counted.model is not None, "of none, nothing is used"
        return counted.place(family, model=counted.model)


def ending(request: "Request") -> tuple[int, str]:
    """The status of an answer that has ended, and the code of its error; of a stream that failed, both."""
    refusal = request.refusal
    if request.left and refusal is not None:
        return LEFT
    return request.status or LEFT[0], (refusal.code or refusal.type) if refusal is not None else ""


def _observe(cells: "memoryview[float]", index: int, bounds: tuple[float, ...], value: float) -> None:
    """Into a histogram: into its bucket, and into its sum, which is the last cell."""
    cells[index + bisect_left(bounds, value)] += 1
    cells[index + len(bounds) + 1] += value
