"""A deployment: an id of the API, the profile behind it, and the Triton servers that hold its model."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from upstream.answer import Answer, One, Several, open_answer
from upstream.errors import ConnectFailed, Unavailable
from upstream.inference import Generation
from upstream.replica import Binding, Replica, Server, Settings
from upstream.tasks import TASKS
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.grpc import GrpcStream
    from upstream.template import ChatTemplate

T = TypeVar("T")
A = TypeVar("A", bound=Answer)


class Deployment:
    """Serves the requests for one id. `verified` is what GET /models and routing go by."""

    def __init__(self, settings: Settings, servers: Iterable[Server]) -> None:
        self.settings = settings
        self.checked = asyncio.Event()
        self.prepared: Any = None  # what the task reads once: a chat template, a tokenizer, voices
        self._task = TASKS[settings.task]()
        self._unprepared = "not checked yet"
        self.replicas = [Replica(settings, server, self._task.bind) for server in servers]

    @property
    def id(self) -> str:
        return self.settings.id

    @property
    def verified(self) -> bool:
        return not self._unprepared and any(replica.binding is not None for replica in self.replicas)

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
        if not self._unprepared:
            for replica in self.replicas:
                if replica.binding is not None:
                    return replica.binding
        raise Unavailable(f"{self.id}: {self.reason}")

    @property
    def sources(self) -> frozenset[str]:
        """What of a request reaches the model on every server. Raises Unavailable when none is verified."""
        sources = self.binding.sources
        for replica in self.replicas:
            if replica.binding is not None and replica.binding.sources is not sources:
                sources &= replica.binding.sources
        return sources

    @property
    def template(self) -> "ChatTemplate":
        """A verified chat model's template."""
        return self.prepared  # type: ignore[no-any-return]

    async def check(self, timeout: float) -> None:
        """Verify every replica now and meanwhile, if that is still to be done, read what the task needs."""
        deadline = asyncio.get_running_loop().time() + timeout
        await asyncio.gather(self._prepare(), *(replica.check(deadline) for replica in self.replicas))
        self.checked.set()

    async def _prepare(self) -> None:
        if self._unprepared:
            try:
                self.prepared = await asyncio.to_thread(self._task.prepare, self.settings)
                self._unprepared = ""
            except ValueError as error:
                self._unprepared = str(error)

    async def open(self, generation: Generation) -> Answer:
        """Send `generation` to the replica with the least to do. The caller closes the Answer, whatever happens.

        Raises Unsupported (the model cannot honour a field), Unavailable (no server has it), or another UpstreamError.
        """
        deadline = self._deadline()

        def send(asked: Generation) -> Awaitable[One]:
            return self._try(lambda replica: open_answer(replica, asked, deadline))

        n = generation.n or 1
        if n == 1 or "n" in self.sources:
            return await send(generation)
        # The model makes one at a time; a seed must not make them alike.
        seed = generation.seed
        each = [replace(generation, n=None, seed=None if seed is None else seed + i) for i in range(n)]
        return Several(await _all(map(send, each)))

    async def open_each(self, generations: Sequence[Generation]) -> Answer:
        """Several prompts with as many choices each, as one answer in which the choices of a prompt follow the last's.

        As `open`.
        """
        if len(generations) == 1:
            return await self.open(generations[0])
        return Several(await _all(map(self.open, generations)), generations[0].n or 1, prompts=True)

    async def generate(self, body: bytes) -> bytes:
        """One JSON request, one JSON answer, at the replica with the least to do. Raises an UpstreamError."""
        return await self._counted(lambda replica, deadline: replica.generate(body, deadline))

    async def infer(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> dict[str, Array]:
        """One inference on tensors, at the replica with the least to do. Raises an UpstreamError."""
        return await self._counted(lambda replica, deadline: replica.infer(arrays, outputs, parameters, deadline))

    def stream(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any]
    ) -> "GrpcStream":
        """One request, any number of responses on tensors. The caller closes it. Raises Unavailable."""
        replica = self._choose([])
        if replica is None:
            raise Unavailable(f"{self.id}: {self.reason}")
        return replica.stream(arrays, outputs, parameters, self._deadline())

    async def _counted(self, exchange: Callable[[Replica, float], Awaitable[T]]) -> T:
        """A whole exchange with one replica, which has more to do meanwhile."""
        deadline = self._deadline()

        async def ask(replica: Replica) -> T:
            replica.outstanding += 1
            try:
                return await exchange(replica, deadline)
            finally:
                replica.outstanding -= 1

        return await self._try(ask)

    async def _try(self, ask: Callable[[Replica], Awaitable[T]]) -> T:
        """Ask a replica; another one where the request cannot have reached the first."""
        tried: list[Replica] = []
        while (replica := self._choose(tried)) is not None:
            try:
                return await ask(replica)
            except ConnectFailed as error:
                replica.lose(str(error))
                tried.append(replica)
        raise Unavailable(f"{self.id}: {self.reason}")

    def _deadline(self) -> float:
        return monotonic() + self.settings.timeout  # the clock of loop.time()

    def _choose(self, tried: list[Replica]) -> Replica | None:
        best = None
        for replica in self.replicas:
            if replica.binding is None or replica in tried:
                continue
            if best is None or replica.outstanding < best.outstanding:
                best = replica
        return best


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
