"""A deployment's model on one Triton server: is it there, does the profile fit, and the calls that it takes."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from upstream import tensors
from upstream.connection import Stream
from upstream.contract import Contract, NotBound, Profile, read_contract
from upstream.errors import ConnectFailed, Unavailable, UpstreamError, failure
from upstream.health import FIRST_BACKOFF, Health
from upstream.http import Client
from upstream.loading import Repository
from upstream.queue import Queue
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.grpc import GrpcClient, GrpcStream

JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}
LONGEST_WAIT = 3600  # seconds for which a client is sent away
LONG = frozenset({"image", "speech", "transcription"})
"""Tasks whose inferences take seconds of a GPU, beside which the 0.5 ms of CPU that gRPC takes more are nothing."""


class Binding(Protocol):
    """What every task's binding has: what of a job reaches the model, and what of the profile the model lacks."""

    contract: Contract
    sources: frozenset[str]
    left_out: list[str]


class Settings(Profile, Protocol):
    """The part of a [[models]] entry that a deployment reads; each task reads a table of its own beside it."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def transport(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def cancel(self) -> str | None: ...
    @property
    def max_inflight(self) -> int | None: ...
    @property
    def max_queue(self) -> int | None: ...
    @property
    def autoload(self) -> bool: ...
    @property
    def cold_start_wait(self) -> float | None: ...
    @property
    def idle_unload(self) -> float | None: ...
    @property
    def context(self) -> int | None: ...
    @property
    def max_output(self) -> int | None: ...
    @property
    def chat(self) -> Any: ...


class Server(NamedTuple):
    """One Triton: what an operator calls it, its HTTP address and, where it is configured, its gRPC address."""

    url: str
    http: Client
    grpc: "GrpcClient | None"


class Replica:
    """Verified while `binding` is not None; else, and while it is ejected, `reason` says why not.

    `outstanding` are the requests that have a place here now, `requests` those that ever had, `errors` those of them
    that ended with an error of the server's.
    """

    def __init__(
        self,
        settings: Settings,
        server: Server,
        bind: Callable[[Any, Contract], Binding],
        queue: Queue,
        note: Callable[["Replica", UpstreamError], None],
    ) -> None:
        path = f"/v2/models/{quote(settings.model, safe='')}"
        if settings.version:
            path += f"/versions/{quote(settings.version, safe='')}"
        self.settings = settings
        self.server = server
        self.health = Health()
        self.binding: Binding | None = None
        self.reason = "not checked yet"
        self.has_grpc = server.grpc is not None
        self.outstanding = self.requests = self.errors = 0
        self.repository = Repository(server.http, settings.model) if settings.autoload else None
        self.loadable = False  # Triton knows the model, and has not loaded it
        self.hurry = asyncio.Event()  # its next check is due earlier than it was
        self._queue = queue
        self._note = note
        self._grpc = server.grpc
        self._bind = bind
        self._ready = server.http.target("GET", f"{path}/ready", {})
        self._config = server.http.target("GET", f"{path}/config", {})
        self._generate = server.http.target("POST", f"{path}/generate", JSON)
        self._generate_stream = server.http.target("POST", f"{path}/generate_stream", JSON)
        self._infer = server.http.target("POST", f"{path}/infer", BINARY)
        self._bound_to = b""

    async def check(self, deadline: float) -> None:
        """Ask Triton whether the model is ready, and bind the profile to its configuration. A fault is a `reason`."""
        try:
            ready = await self._ready.call(deadline=deadline)
            if ready.status != 200:
                self.loadable = self.repository is not None and await self.repository.state() is not None
                told = "the model is not loaded" if self.loadable else "the model is not ready (not loaded, or unknown)"
                return self.lose(f"{told} at this server")
            self.loadable = False
            self.has_grpc = self._grpc is not None
            config = await self._config.call(deadline=deadline)
            if config.status != 200:
                return self.lose(f"the model's configuration cannot be read (status {config.status})")
            if config.body != self._bound_to or self.binding is None:
                self.binding = self._bound(read_contract(config.body))
                self._bound_to = config.body
            self.health.verified(asyncio.get_running_loop().time())
            if self.health.may_serve:
                self.reason = ""
        except ConnectFailed as error:
            self.lose(str(error))
            self.loadable = False
            self.health.unreachable(asyncio.get_running_loop().time())
        except (UpstreamError, NotBound) as error:
            self.lose(str(error))
        except ValueError as error:
            self.lose(f"the model's configuration is not what Triton documents: {error}")

    def lose(self, reason: str) -> None:
        """Serve nothing here until the next check."""
        self.binding, self.reason = None, reason
        self.health.unverified()

    def leave(self) -> None:
        """A request gives its place here back."""
        self.outstanding -= 1
        if self._queue.waiting:
            self._queue.advance()

    def broke(self, error: UpstreamError) -> None:
        """A stream from here ended with an error after it had begun."""
        self._note(self, error)

    def failed(self, error: UpstreamError, *, alone: bool) -> bool:
        """A request ended so. Returns whether the replica serves no more, or is to be looked at soon.

        `alone`: no other one serves. What the request itself is to blame for, and a full queue, say nothing.
        """
        now = asyncio.get_running_loop().time()
        if isinstance(error, ConnectFailed):
            self.health.refused(now)
        elif isinstance(error, Unavailable) and error.absent:
            self.lose(str(error))
            self.health.unverified(now + FIRST_BACKOFF)
            self.loadable = self.repository is not None
        elif not error.of_server or not self.health.failed(now, alone=alone):
            return False
        self.reason = str(error)
        self.hurry.set()
        return True

    async def rest(self, every: float) -> None:
        """Until the next check is due: after `every` seconds or, of an ejected one, when its time is over."""
        loop = asyncio.get_running_loop()
        regular = loop.time() + every
        while True:
            self.hurry.clear()
            due = min(regular, self.health.due)
            if due <= loop.time():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self.hurry.wait()

    async def generate(self, body: bytes, deadline: float) -> bytes:
        """One JSON request, one JSON answer."""
        reply = await self._generate.call(body, deadline=deadline)
        if reply.status != 200:
            raise _failure(reply.status, reply.headers, reply.body)
        return reply.body

    async def generate_stream(self, body: bytes, deadline: float) -> Stream:
        """One JSON request, an answer as events; the caller closes it."""
        stream = await self._generate_stream.open(body, deadline=deadline)
        try:
            if stream.status != 200:
                raise _failure(stream.status, stream.headers, await stream.all(1 << 16))
        except BaseException:
            stream.close()
            raise
        return stream

    async def infer(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> dict[str, Array]:
        """One inference on tensors; of a decoupled model, its only response."""
        if self.infers_by_grpc:
            try:
                return await self._infer_by_grpc(arrays, outputs, parameters, deadline)
            except ConnectFailed:
                if "grpc" in (self.settings.transport, self.settings.cancel):
                    raise
                self.has_grpc = False  # until the next check; nothing was sent, and HTTP may work
        body, head = tensors.request(arrays, outputs, parameters)
        reply = await self._infer.call(body, deadline=deadline, extra=head)
        if reply.status != 200:
            raise _failure(reply.status, reply.headers, reply.body)
        return tensors.reply(reply.headers, reply.body)

    @property
    def infers_by_grpc(self) -> bool:
        """Whether an inference on tensors is one that Triton stops when its reader leaves: over HTTP it sees nothing.

        What takes long is, unless something is to be paid for it: over gRPC nobody could tell what ran.
        """
        settings = self.settings
        if "grpc" in (settings.transport, settings.cancel):
            return True
        return self.has_grpc and settings.cancel is None and settings.price is None and settings.task in LONG

    async def stream(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> "GrpcStream":
        """One request, any number of responses on tensors: always gRPC. The caller closes it."""
        if self._grpc is None:
            raise Unavailable("the upstream has no gRPC address")
        await self._grpc.prepare()
        settings = self.settings
        return self._grpc.stream(
            settings.model, settings.version, arrays, outputs, parameters=parameters, deadline=deadline
        )

    async def _infer_by_grpc(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> dict[str, Array]:
        assert self._grpc is not None
        await self._grpc.prepare()
        settings = self.settings
        return await self._grpc.infer(
            settings.model, settings.version, arrays, outputs, parameters=parameters, deadline=deadline
        )

    def _bound(self, contract: Contract) -> Binding:
        if self.settings.transport == "grpc" and self._grpc is None:
            raise NotBound("its transport is grpc and its upstream has no gRPC address: set grpc in [upstreams]")
        return self._bind(self.settings, contract)


class _ErrorBody(msgspec.Struct):
    error: str = ""


def _failure(status: int, headers: Mapping[bytes, bytes], body: bytes) -> UpstreamError:
    """What Triton's error means. On generate every error of a backend comes as 400, whatever its own code was."""
    try:
        message = msgspec.json.decode(body.removeprefix(b"data: "), type=_ErrorBody).error  # a stream's is an event
    except msgspec.MsgspecError:
        message = repr(body[:200])
    error = failure(message, f"status {status}", busy=status == 503, absent=status == 404)
    wait = headers.get(b"retry-after", b"")
    if isinstance(error, Unavailable) and wait.isdigit():  # of who stands before Triton
        error.retry_after = min(max(int(wait), 1), LONGEST_WAIT)
    return error
