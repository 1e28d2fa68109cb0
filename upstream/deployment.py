"""A deployment: an id of the API, the profile behind it, and the Triton servers that hold its model."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec.structs import replace

from upstream.answer import Answer, Several, open_answer, way_of
from upstream.errors import ConnectFailed, Unavailable, UpstreamError
from upstream.inference import Generation
from upstream.loading import Loader
from upstream.queue import Queue, Watcher
from upstream.replica import Binding, Replica, Server, Settings
from upstream.responses import Responses
from upstream.tasks import TASKS
from upstream.tensors import Array
from upstream.trace import ASKED

if TYPE_CHECKING:
    from upstream.template import ChatTemplate

State = Literal["serving", "cold", "loading", "unloading", "unavailable"]
T = TypeVar("T")
A = TypeVar("A", bound=Answer)

MAX_QUEUE = 256
"""Requests that may wait where max_inflight is set and max_queue is not."""

UNREADABLE = (ValueError, OSError, ImportError)
"""That a task's files are not what they should be; or, the latter two, that no file is left to open, say."""

MOST_TRIED = 8
"""Servers that a request is sent to where each says that it does not have the model, and it is loaded in between."""


class Deployment:
    """Serves the requests for one id. `verified` is what GET /models and routing go by.

    `retries` are the requests that another server was asked for, since the first could not run them.
    """

    def __init__(self, settings: Settings, servers: Iterable[Server], watcher: Watcher) -> None:
        self.id, self.settings = settings.id, settings
        self.checked = asyncio.Event()
        self.prepared: Any = None  # what the task reads once: a chat template, a tokenizer, voices
        self.serving: list[Replica] = []
        self.verified = False
        self.retries = 0
        self.told: Callable[[], None] = lambda: None  # called when servers come or go
        most = MAX_QUEUE if settings.max_queue is None else settings.max_queue
        self.queue = Queue(settings.id, most, self._take, watcher)
        self.loader = Loader(self, watcher) if settings.autoload else None
        self._watcher = watcher
        self._task = TASKS[settings.task]()
        self._unprepared = "not checked yet"
        self._most = settings.max_inflight or sys.maxsize
        self._trials: list[Replica] = []
        self._sources: frozenset[str] | None = None
        self._at = 0
        self.replicas = [self._replica(server) for server in servers]

    @property
    def available(self) -> bool:
        """Whether it is verified, or will be loaded for who asks."""
        return self.verified or (self.loader is not None and any(replica.loadable for replica in self.replicas))

    @property
    def state(self) -> State:
        """What an operator wants to know of it."""
        if self.verified:
            return "serving"
        if self.loader is None or not self.available:
            return "unavailable"
        return "unloading" if self.loader.unloading else "loading" if self.loader.loading else "cold"

    @property
    def reason(self) -> str:
        """Why it is not verified; empty when it is."""
        if self.verified:
            return ""
        return self._unprepared or "; ".join(dict.fromkeys(replica.reason for replica in self.replicas))

    @property
    def left_out(self) -> list[str]:
        """Tensors of the profile that the live model does not have."""
        return sorted({name for replica in self.replicas if replica.binding for name in replica.binding.left_out})

    @property
    def binding(self) -> Binding:
        """The profile on the live model. Raises Unavailable when the deployment is not verified."""
        for replica in self.serving or self._trials:
            if replica.binding is not None:
                return replica.binding
        raise Unavailable(f"{self.id}: {self.reason}")

    @property
    def sources(self) -> frozenset[str]:
        """What of a request reaches the model on every server. Raises Unavailable when none is verified."""
        if self._sources is None:
            self._sources = self.binding.sources.intersection(
                *(replica.binding.sources for replica in self.serving if replica.binding is not None)
            )
        return self._sources

    @property
    def template(self) -> "ChatTemplate":
        """A verified chat model's template."""
        return self.prepared  # type: ignore[no-any-return]

    async def check(self, timeout: float) -> None:
        """Verify every replica now and meanwhile, if that is still to be done, read what the task needs."""
        deadline = asyncio.get_running_loop().time() + timeout
        await asyncio.gather(self.prepare(), *(replica.check(deadline) for replica in self.replicas))
        self.refresh()
        self.checked.set()

    async def look(self, replica: Replica, timeout: float) -> None:
        """Verify one of them now."""
        if self.loader is not None and self.loader.unloading is not None:
            return  # it would be found ready a moment longer
        await self.prepare()
        await replica.check(asyncio.get_running_loop().time() + timeout)
        self.refresh()
        if self.loader is not None:
            self.loader.follow()

    async def wake(self) -> None:
        """Return once it has been looked at and, where it is to be loaded, a server has it.

        Raises Loading or Unavailable where that fails; what is not to be loaded may be unverified still.
        """
        await self.checked.wait()
        if self.loader is not None and not self.verified:
            await self.loader.wake()

    async def prepare(self) -> None:
        """Read what the task needs, if that is still to be done."""
        if self._unprepared:
            try:
                self.prepared = await asyncio.to_thread(self._task.prepare, self.settings)
                self._unprepared = ""
            except UNREADABLE as error:
                self._unprepared = str(error)

    async def read(self, settings: Settings) -> list[Any] | None:
        """What the task needs, in a list, read anew; None where it cannot be read, or never could."""
        try:
            return None if self._unprepared else [await asyncio.to_thread(self._task.prepare, settings)]
        except UNREADABLE:
            return None

    def renew(self, settings: Settings, read: list[Any]) -> None:
        """Go by settings that ask nothing else of Triton, and by what was read for them."""
        self.settings = settings
        [self.prepared] = read
        for replica in self.replicas:
            replica.settings = settings

    def add(self, server: Server) -> Replica:
        """One more server of this model; it serves once it is checked."""
        replica = self._replica(server)
        self.replicas.append(replica)
        return replica

    def remove(self, replica: Replica) -> None:
        """Ask it no more; what is under way there goes on."""
        self.replicas.remove(replica)
        self.refresh()

    def refresh(self) -> None:
        """A replica's health has changed: who may be asked now, and who of those that wait."""
        ready = [] if self._unprepared else [each for each in self.replicas if each.binding is not None]
        self.serving = [each for each in ready if each.health.state == "serving"]
        self._trials = [each for each in ready if each.health.state == "trial"]
        self._sources = None
        self.verified = bool(self.serving or self._trials)
        if self.verified:
            self.queue.advance()
        else:
            self.queue.fail(lambda: Unavailable(f"{self.id}: {self.reason}"))
        self.told()

    def open(self, generation: Generation, *, waits: bool = True) -> Coroutine[Any, Any, Answer]:
        """Send `generation` to the replica with the least to do. The caller closes the Answer, whatever happens.

        Raises Unsupported (the model cannot honour a field), Unavailable (no server has it), or another UpstreamError.
        """
        n = generation.n or 1
        if n == 1 or "n" in self.sources:
            return self.ask(lambda replica, due: open_answer(replica, generation, due), waits=waits)
        # The model makes one at a time; a seed must not make them alike.
        seed = generation.seed
        each = [replace(generation, n=None, seed=None if seed is None else seed + i) for i in range(n)]
        return self._open_all(each, waits=waits)

    def open_each(self, generations: Sequence[Generation]) -> Coroutine[Any, Any, Answer]:
        """Several prompts with as many choices each, as one answer in which the choices of a prompt follow the last's.

        As `open`.
        """
        if len(generations) == 1:
            return self.open(generations[0])
        return self._open_all(generations, generations[0].n or 1, prompts=True)

    def stops(self, generation: Generation) -> bool:
        """Whether Triton stops an answer whose reader leaves, on whichever server."""
        return all(way_of(replica, generation) != "generate" for replica in self.serving)

    @property
    def stops_inferences(self) -> bool:
        """Whether Triton stops an inference on tensors whose reader leaves, on whichever server."""
        return all(replica.infers_by_grpc for replica in self.serving)

    def generate(self, body: bytes) -> Coroutine[Any, Any, bytes]:
        """One JSON request, one JSON answer, at the replica with the least to do. Raises an UpstreamError."""
        return self.ask(lambda replica, due: replica.generate(body, due), whole=True)

    def infer(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> Coroutine[Any, Any, dict[str, Array]]:
        """One inference on tensors, at the replica with the least to do. Raises an UpstreamError."""
        return self.ask(lambda replica, due: replica.infer(arrays, outputs, parameters, due), whole=True)

    def stream(self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any]) -> Responses:
        """One request, any number of responses on tensors: begun by the first read. The caller closes it."""
        return Responses(self, lambda replica, due: replica.stream(arrays, outputs, parameters, due))

    async def ask(
        self, exchange: Callable[[Replica, float], Awaitable[T]], *, whole: bool = False, waits: bool = True
    ) -> T:
        """One exchange with the replica with the least to do; with another where the first cannot have run it.

        It has a place there, which is free again when it failed or is `whole`; else whoever gets the result leaves it.
        Where it must not wait, it may be one more than there is room for.
        """
        deadline = self._deadline()
        replica = self._take(self._most if waits else sys.maxsize) or await self._turn(deadline)
        tried: tuple[Replica, ...] = ()
        while True:
            if (asked := ASKED.get()) is not None:
                asked.append(replica.server.url)
            try:
                result = await exchange(replica, deadline)
            except UpstreamError as error:
                replica.leave()
                self.note(replica, error)
                tried += (replica,)
                replica = await self._another(tried, error, deadline)
            except BaseException:
                replica.leave()
                raise
            else:
                if whole:
                    replica.leave()
                if replica.health.failures or self._trials:
                    replica.health.succeeded()
                    self.refresh()
                return result

    def note(self, replica: Replica, error: UpstreamError) -> None:
        """A request ended with an error there."""
        replica.errors += error.of_server
        if replica.failed(error, alone=len(self.serving) < 2):
            self.refresh()

    def _replica(self, server: Server) -> Replica:
        return Replica(self.settings, server, self._task.bind, self.queue, self.note)

    def _deadline(self) -> float:
        return monotonic() + self.settings.timeout  # the clock of loop.time()

    def _take(self, most: int | None = None) -> Replica | None:
        """A place at the one of two replicas that has less to do; None where none has room.

        The first of the two goes round, so that equals share; the second is any other.
        """
        serving, most = self.serving, most or self._most
        count = len(serving)
        if self._trials and (trial := next((each for each in self._trials if not each.outstanding), None)):
            return _placed(trial)
        if not count:
            return None
        best = serving[0]
        if count > 1:
            at = self._at = (self._at + 1) % count
            best, other = serving[at], serving[(at + 1 + int(random() * (count - 1))) % count]
            if other.outstanding < best.outstanding:
                best = other
            if best.outstanding >= most:
                best = min(serving, key=_load)
        return _placed(best) if best.outstanding < most else None

    async def _turn(self, deadline: float) -> Replica:
        """A place, as soon as there is one. Raises Unavailable where no server has the model."""
        await self.wake()
        if not self.verified:
            raise Unavailable(f"{self.id}: {self.reason}")
        return self._take() or await self.queue.wait(deadline)

    async def _another(self, tried: tuple[Replica, ...], error: UpstreamError, deadline: float) -> Replica:
        """A place with one that was not asked yet, whether it has room or not: who was let in waits no second time.

        Raises `error` where it may have run, or nobody else is there.
        """
        if error.sent or not isinstance(error, ConnectFailed | Unavailable):
            raise error
        others = [each for each in (*self.serving, *self._trials) if each not in tried]
        if others:
            self.retries += 1
            self._watcher.retried(self.id)
            return _placed(min(others, key=_load))
        if self.loader is not None and isinstance(error, Unavailable) and error.absent and len(tried) < MOST_TRIED:
            return await self._turn(deadline)
        if isinstance(error, ConnectFailed) or error.absent:
            raise Unavailable(f"{self.id}: {self.reason or error}") from error
        raise error

    async def _open_all(
        self, generations: Sequence[Generation], choices: int = 1, *, prompts: bool = False, waits: bool = True
    ) -> Several:
        """Of streams, which are read side by side, none may wait for a place that another one has: they wait once."""
        if not waits or not (generations[0].stream or self.settings.cancel == "stream"):
            answers = await _all(self.open(each, waits=waits) for each in generations)
            return Several(answers, choices, prompts=prompts)
        place = self._take() or await self._turn(self._deadline())
        try:
            answers = await _all(self.open(each, waits=False) for each in generations)
            return Several(answers, choices, prompts=prompts)
        finally:
            place.leave()


def _placed(replica: Replica) -> Replica:
    replica.outstanding += 1
    replica.requests += 1
    return replica


def _load(replica: Replica) -> int:
    return replica.outstanding


async def _all(openings: Iterable[Awaitable[A]]) -> list[A]:
    """All answers or, where one fails or is not waited for, none."""
    tasks = [asyncio.ensure_future(each) for each in openings]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        for opened in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(opened, BaseException):
                opened.close()
        raise
