"""A deployment: an id of the API, the profile behind it, and the Triton servers that hold its model."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from upstream.binding import Binding, Contract, NotBound, Profile, Reader, read_contract
from upstream.connection import Stream
from upstream.errors import Broken, ConnectFailed, Unavailable, UpstreamError, failure
from upstream.http import Client, Target
from upstream.inference import Delta, Generation, Usage
from upstream.sse import Events
from upstream.template import ChatTemplate

JSON = {"Content-Type": "application/json"}


class Settings(Profile, Protocol):
    """The part of a [[models]] entry that a deployment reads."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def max_output(self) -> int | None: ...
    @property
    def chat(self) -> "ChatSettings": ...


class ChatSettings(Protocol):
    """The part of [models.chat] that a deployment reads; `template` is an absolute path."""

    @property
    def template(self) -> str | None: ...


class Replica:
    """A deployment's model on one Triton server: its routes, its binding, or the reason why it has none."""

    def __init__(self, settings: Settings, client: Client) -> None:
        path = f"/v2/models/{quote(settings.model, safe='')}"
        if settings.version:
            path += f"/versions/{quote(settings.version, safe='')}"
        self.settings = settings
        self.client = client
        self.generate: Target = client.target("POST", f"{path}/generate", JSON)
        self.generate_stream: Target = client.target("POST", f"{path}/generate_stream", JSON)
        self.outstanding = 0
        self.binding: Binding | None = None
        self.reason = "not checked yet"
        self._ready = client.target("GET", f"{path}/ready", {})
        self._config = client.target("GET", f"{path}/config", {})
        self._bound_to = b""

    async def check(self, deadline: float) -> None:
        """Ask Triton whether the model is ready, and bind the profile to its configuration. A fault is a `reason`."""
        try:
            ready = await self._ready.call(deadline=deadline)
            if ready.status != 200:
                return self._lose("the model is not ready (not loaded, or unknown to this server)")
            config = await self._config.call(deadline=deadline)
            if config.status != 200:
                return self._lose(f"the model's configuration cannot be read (status {config.status})")
            if config.body != self._bound_to or self.binding is None:
                contract: Contract = read_contract(config.body)
                self.binding = Binding(self.settings, contract)
                self._bound_to = config.body
            self.reason = ""
        except UpstreamError as error:
            self._lose(str(error))
        except NotBound as error:
            self._lose(str(error))
        except ValueError as error:
            self._lose(f"the model's configuration is not what Triton documents: {error}")

    def _lose(self, reason: str) -> None:
        self.binding, self.reason = None, reason


class Deployment:
    """Serves the requests for one id. `verified` is what GET /models and routing go by."""

    def __init__(self, settings: Settings, clients: Iterable[Client]) -> None:
        self.settings = settings
        self.replicas = [Replica(settings, client) for client in clients]
        self.checked = asyncio.Event()
        self._template: ChatTemplate | None = None
        self._template_error = ""

    @property
    def id(self) -> str:
        return self.settings.id

    @property
    def verified(self) -> bool:
        return self._template is not None and any(replica.binding is not None for replica in self.replicas)

    @property
    def reason(self) -> str:
        """Why it is not verified; empty when it is."""
        if self.verified:
            return ""
        return self._template_error or "; ".join(dict.fromkeys(replica.reason for replica in self.replicas))

    @property
    def left_out(self) -> list[str]:
        """Tensors of the profile that the live model does not have."""
        return sorted({name for replica in self.replicas if replica.binding for name in replica.binding.left_out})

    @property
    def sources(self) -> frozenset[str]:
        """What of a request reaches the model. Raises Unavailable when the deployment is not verified."""
        for replica in self.replicas:
            if replica.binding is not None:
                return replica.binding.sources
        raise Unavailable(f"{self.id}: {self.reason}")

    @property
    def template(self) -> ChatTemplate:
        """The chat template. Raises Unavailable when it could not be read."""
        if self._template is None:
            raise Unavailable(f"{self.id}: {self.reason}")
        return self._template

    async def check(self, timeout: float) -> None:
        """Read the template, if that is still to be done, and verify every replica now."""
        if self._template is None:
            self._read_template()
        deadline = asyncio.get_running_loop().time() + timeout
        await asyncio.gather(*(replica.check(deadline) for replica in self.replicas))
        self.checked.set()

    async def open(self, generation: Generation, *, deadline: float | None = None) -> "Answer":
        """Send `generation` to the replica with the least to do. The caller closes the Answer, whatever happens.

        Raises Unsupported (the model cannot honour a field), Unavailable (no server has it), or another UpstreamError.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.settings.timeout
        tried: list[Replica] = []
        while (replica := self._choose(tried)) is not None:
            try:
                return await _open(replica, generation, deadline)
            except ConnectFailed as error:
                replica._lose(str(error))
                tried.append(replica)
        raise Unavailable(f"{self.id}: {self.reason}")

    def _read_template(self) -> None:
        path = self.settings.chat.template
        if path is None:
            self._template_error = "a chat model needs a template: set [models.chat] template"
            return
        try:
            self._template = ChatTemplate.load(Path(path))
        except ValueError as error:
            self._template_error = str(error)

    def _choose(self, tried: list[Replica]) -> Replica | None:
        best = None
        for replica in self.replicas:
            if replica.binding is None or replica in tried:
                continue
            if best is None or replica.outstanding < best.outstanding:
                best = replica
        return best


class Answer:
    """One answer under way: `read` gives the deltas of one arrival, `usage` what the model has counted so far."""

    def __init__(self, replica: Replica, reader: Reader) -> None:
        self.reader = reader
        self._replica: Replica | None = replica
        self._stream: Stream | None = None
        self._events = Events()
        self._whole: list[Delta] | None = None
        replica.outstanding += 1

    @property
    def usage(self) -> Usage:
        return self.reader.usage

    async def read(self) -> list[Delta]:
        """The next deltas, as soon as any have come; an empty list when the answer is complete.

        Raises an UpstreamError when it broke off, failed, or ran past its deadline.
        """
        if self._whole is not None:
            deltas, self._whole = self._whole, []
            return deltas
        stream = self._stream
        assert stream is not None
        while data := await stream.read():
            deltas = self.reader.read(self._events.feed(data))
            if deltas:
                return deltas
        if self._events.partial:
            raise Broken("the stream ended within an event")
        return self.reader.end()

    def close(self) -> None:
        """Let the replica go; an answer that is not complete is cancelled there. Calling it again does nothing."""
        if self._stream is not None:
            self._stream.close()
        if self._replica is not None:
            self._replica.outstanding -= 1
            self._replica = None


async def _open(replica: Replica, generation: Generation, deadline: float) -> Answer:
    binding = replica.binding
    assert binding is not None
    body = binding.encode(generation)
    answer = Answer(replica, binding.reader(generation))
    try:
        if generation.stream:
            stream = answer._stream = await replica.generate_stream.open(body, deadline=deadline)
            if stream.status != 200:
                raise _failure(stream.status, await stream.all(1 << 16))
        else:
            reply = await replica.generate.call(body, deadline=deadline)
            if reply.status != 200:
                raise _failure(reply.status, reply.body)
            answer._whole = answer.reader.read([reply.body]) + answer.reader.end()
    except BaseException:
        answer.close()
        raise
    return answer


class _ErrorBody(msgspec.Struct):
    error: str = ""


def _failure(status: int, body: bytes) -> UpstreamError:
    """What Triton's error means. On generate every error of a backend comes as 400, whatever its own code was."""
    try:
        message = msgspec.json.decode(body.removeprefix(b"data: "), type=_ErrorBody).error  # a stream's is an event
    except msgspec.MsgspecError:
        message = repr(body[:200])
    return failure(message, f"status {status}", busy=status == 503, absent=status == 404)
