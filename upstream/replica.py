"""A deployment's model on one Triton server: is it there, does the profile fit, and the calls that it takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from upstream import tensors
from upstream.connection import Stream
from upstream.contract import Contract, NotBound, Profile, read_contract
from upstream.errors import Unavailable, UpstreamError, failure
from upstream.http import Client
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.grpc import GrpcClient, GrpcStream

JSON = {"Content-Type": "application/json"}
BINARY = {"Content-Type": "application/octet-stream"}


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
    def context(self) -> int | None: ...
    @property
    def max_output(self) -> int | None: ...
    @property
    def chat(self) -> Any: ...


class Server(NamedTuple):
    """One Triton: its HTTP address and, where it is configured, its gRPC address."""

    http: Client
    grpc: "GrpcClient | None"


class Replica:
    """Verified while `binding` is not None; else `reason` says why not."""

    def __init__(self, settings: Settings, server: Server, bind: Callable[[Any, Contract], Binding]) -> None:
        path = f"/v2/models/{quote(settings.model, safe='')}"
        if settings.version:
            path += f"/versions/{quote(settings.version, safe='')}"
        self.settings = settings
        self.binding: Binding | None = None
        self.reason = "not checked yet"
        self.outstanding = 0
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
                return self.lose("the model is not ready (not loaded, or unknown to this server)")
            config = await self._config.call(deadline=deadline)
            if config.status != 200:
                return self.lose(f"the model's configuration cannot be read (status {config.status})")
            if config.body != self._bound_to or self.binding is None:
                self.binding = self._bound(read_contract(config.body))
                self._bound_to = config.body
            self.reason = ""
        except (UpstreamError, NotBound) as error:
            self.lose(str(error))
        except ValueError as error:
            self.lose(f"the model's configuration is not what Triton documents: {error}")

    def lose(self, reason: str) -> None:
        """Serve nothing here until the next check."""
        self.binding, self.reason = None, reason

    async def generate(self, body: bytes, deadline: float) -> bytes:
        """One JSON request, one JSON answer."""
        reply = await self._generate.call(body, deadline=deadline)
        if reply.status != 200:
            raise _failure(reply.status, reply.body)
        return reply.body

    async def generate_stream(self, body: bytes, deadline: float) -> Stream:
        """One JSON request, an answer as events; the caller closes it."""
        stream = await self._generate_stream.open(body, deadline=deadline)
        try:
            if stream.status != 200:
                raise _failure(stream.status, await stream.all(1 << 16))
        except BaseException:
            stream.close()
            raise
        return stream

    async def infer(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> dict[str, Array]:
        """One inference on tensors, by the profile's transport; of a decoupled model, its only response."""
        if self.settings.transport == "grpc":
            return await self._infer_by_grpc(arrays, outputs, parameters, deadline)
        body, head = tensors.request(arrays, outputs, parameters)
        reply = await self._infer.call(body, deadline=deadline, extra=head)
        if reply.status != 200:
            raise _failure(reply.status, reply.body)
        return tensors.reply(reply.headers, reply.body)

    def stream(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> "GrpcStream":
        """One request, any number of responses on tensors: always gRPC. The caller closes it."""
        if self._grpc is None:
            raise Unavailable("the upstream has no gRPC address")
        settings = self.settings
        return self._grpc.stream(
            settings.model, settings.version, arrays, outputs, parameters=parameters, deadline=deadline
        )

    async def _infer_by_grpc(
        self, arrays: Mapping[str, Array], outputs: Sequence[str], parameters: Mapping[str, Any], deadline: float
    ) -> dict[str, Array]:
        assert self._grpc is not None
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


def _failure(status: int, body: bytes) -> UpstreamError:
    """What Triton's error means. On generate every error of a backend comes as 400, whatever its own code was."""
    try:
        message = msgspec.json.decode(body.removeprefix(b"data: "), type=_ErrorBody).error  # a stream's is an event
    except msgspec.MsgspecError:
        message = repr(body[:200])
    return failure(message, f"status {status}", busy=status == 503, absent=status == 404)
