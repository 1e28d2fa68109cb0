"""Triton over gRPC, for streams that must be cancelled early: the only home of tritonclient and grpcio.

Of tritonclient we use the protobuf messages it ships, on grpc.aio itself: its own client goes through numpy and runs an
iterator's task beside each stream. Both libraries are imported by `GrpcClient.open`, not before.
"""

import asyncio
import importlib
import re
import ssl
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from upstream.errors import (
    BadReply,
    Broken,
    Closed,
    ConnectFailed,
    DeadlinePassed,
    ReplyTooLarge,
    Unavailable,
    UpstreamError,
    failure,
)
from upstream.tensors import Array, received
from upstream.trace import TRACE

if TYPE_CHECKING:
    from grpc import ChannelCredentials, aio  # type: ignore[import-untyped]

Parameter = str | bool | int | float
NO_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({})

MAX_REPLY = 256 * 1024 * 1024
SERVICE = "/inference.GRPCInferenceService"
# Triton ends a connection, and all its streams, at the third ping that comes within 5 minutes of the one before.
KEEPALIVE_MS = 310_000
KEEPALIVE_TIMEOUT_MS = 20_000  # Linux also gives up a connection whose data stays unacknowledged for so long
MAX_BACKOFF_MS = 1_000  # a Triton that has come back is noticed within this

# gRPC has one code for "never connected", "connection lost" and "the model is busy"; only the words differ.
_NOT_CONNECTED = re.compile(r"failed to connect|errors resolving|resolution failed", re.IGNORECASE)


class GrpcClient:
    """One channel to one Triton; it belongs to the event loop of the first call."""

    def __init__(self, address: str, *, connect_timeout: float = 5.0, at: str | None = None) -> None:
        """`address` is host:port, or that after grpc:// or grpcs:// (TLS), else ValueError. The time is in seconds.

        `at` is the one address to connect to, of several that the host has.
        """
        found = re.fullmatch(r"(?:(grpcs?)://)?([\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})/?", address)
        if found is None:
            raise ValueError(f"not host:port, grpc://host:port or grpcs://host:port: {address!r}")
        self._authority = f"{found[2]}:{found[3]}"
        self._host = found[2]
        self.address = self._authority
        if at is not None:
            self.address = f"[{at}]:{found[3]}" if ":" in at else f"{at}:{found[3]}"
        self._secure = found[1] == "grpcs"
        self._connect_timeout = connect_timeout
        self._channel: aio.Channel | None = None
        self._closed = False
        self._unary: Any  # from open on, like what follows
        self._stream: Any

    async def prepare(self) -> None:
        """Import what `open` needs beside the loop: the first client's takes some 0.15 s of CPU and 27 MB."""
        if self._channel is None:
            await asyncio.to_thread(_import)

    def open(self) -> None:
        """Make the channel, which connects when it is first used. Every call does this when it is still to be done."""
        if self._closed:
            raise ConnectFailed(f"{self.address}: the client is closed")
        if self._channel is not None:
            return
        from grpc import aio
        from tritonclient.grpc import service_pb2

        options: list[tuple[str, int | str]] = [*_options(self._connect_timeout)]
        if self.address != self._authority:
            options.append(("grpc.default_authority", self._authority))
            if self._secure:
                options.append(("grpc.ssl_target_name_override", self._host))
        if self._secure:
            channel = aio.secure_channel(self.address, _credentials(), options)
        else:
            channel = aio.insecure_channel(self.address, options)
        serialize = service_pb2.ModelInferRequest.SerializeToString
        self._unary = channel.unary_unary(f"{SERVICE}/ModelInfer", serialize, service_pb2.ModelInferResponse.FromString)
        # ModelStreamInfer takes many requests, but one and a half-close look the same on the wire, for two tasks less.
        self._stream = channel.unary_stream(
            f"{SERVICE}/ModelStreamInfer", serialize, service_pb2.ModelStreamInferResponse.FromString
        )
        self._channel = channel

    async def close(self) -> None:
        """Drop the connection: what is under way ends as Broken, a later call as ConnectFailed."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def infer(
        self,
        model: str,
        version: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        parameters: Mapping[str, Parameter] = NO_PARAMETERS,
        deadline: float = inf,
    ) -> dict[str, Array]:
        """The named outputs of one inference; no names ask for all. A cancelled task cancels it at Triton, too.

        `version` may be empty; `deadline` is a loop.time(). Raises UpstreamError; a decoupled model is ModelFailed.
        """
        timeout = self._begin(deadline)
        from grpc import aio

        try:
            reply = await self._unary(
                _request(model, version, inputs, outputs, parameters), timeout=timeout, metadata=_metadata()
            )
        except aio.AioRpcError as error:
            raise _meaning(f"{self.address} {model}", error, begun=False) from error
        except asyncio.CancelledError:
            if _cancelling():
                raise
            raise Broken(f"{self.address} {model}: the client was closed") from None
        return _arrays(reply)

    def stream(
        self,
        model: str,
        version: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        parameters: Mapping[str, Parameter] = NO_PARAMETERS,
        deadline: float = inf,
    ) -> "GrpcStream":
        """Begin an inference with any number of responses. The caller closes the stream, whatever happens.

        Raises DeadlinePassed or ConnectFailed only for what is known without asking; the rest comes with `read`.
        """
        timeout = self._begin(deadline)
        # Not with `triton_grpc_error`: its errors have a code, but end the call, and what was still unread is lost.
        call = self._stream(
            _request(model, version, inputs, outputs, parameters), timeout=timeout, metadata=_metadata()
        )
        return GrpcStream(call, f"{self.address} {model}")

    def _begin(self, deadline: float) -> float | None:
        self.open()
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlinePassed("connect", f"{self.address}: the deadline had passed")
        return None if left == inf else left


class GrpcStream:
    """The responses to one request, in their order; `close` cancels what is still to come."""

    def __init__(self, call: "aio.UnaryStreamCall[Any, Any]", name: str) -> None:
        self._call = call
        self._name = name
        self._begun = False

    async def read(self) -> dict[str, Array] | None:
        """The outputs of the next response; None when Triton has ended the stream well. One reader at a time.

        Raises UpstreamError: Broken also for a stream that was closed here. A cancelled read closes the stream.
        """
        from grpc import aio

        try:
            # A model's end may come as a response of its own, without outputs; the status that follows is what counts.
            while (message := await self._call.read()) is not aio.EOF:
                self._begun = True
                if message.error_message:
                    raise failure(message.error_message, self._name)
                if message.infer_response.outputs:
                    return _arrays(message.infer_response)
        except aio.AioRpcError as error:
            raise _meaning(self._name, error, self._begun) from error
        except asyncio.CancelledError:
            if _cancelling():
                raise
            raise Closed(f"{self._name}: closed here before its end") from None
        except UpstreamError:
            self.close()
            raise
        return None

    def close(self) -> None:
        """Cancel at Triton what is not complete; at once, also before the first response. Twice is once."""
        self._call.cancel()


def _import() -> None:
    importlib.import_module("grpc.aio")
    importlib.import_module("tritonclient.grpc.service_pb2")


def _options(connect_timeout: float) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_REPLY),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Its name notwithstanding, this is how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", round(connect_timeout * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", MAX_BACKOFF_MS),
        # A connection of our own, so that close() ends it; and none through a proxy named in the environment.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]


def _credentials() -> "ChannelCredentials":
    """The authorities that the HTTP client trusts: the system's, or SSL_CERT_FILE; failing those, gRPC's own."""
    import grpc

    file = ssl.get_default_verify_paths().cafile
    return grpc.ssl_channel_credentials(Path(file).read_bytes() if file else None)


def _metadata() -> tuple[tuple[str, str], ...]:
    trace = TRACE.get()
    return trace.metadata() if trace is not None else ()


def _request(
    model: str,
    version: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    parameters: Mapping[str, Parameter],
) -> Any:
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, tensor in inputs.items():
        message.inputs.add(name=name, datatype=tensor.dtype, shape=tensor.shape)
        message.raw_input_contents.append(bytes(tensor.data))
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        setattr(message.parameters[name], _field(name, value), value)
    return message


def _field(name: str, value: Parameter) -> str:
    """Which field of an InferParameter holds it. Triton wants `priority` unsigned, every other integer signed."""
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "uint64_param" if name == "priority" or value >= 1 << 63 else "int64_param"
    return "string_param" if isinstance(value, str) else "double_param"


def _arrays(response: Any) -> dict[str, Array]:
    outputs, contents = response.outputs, response.raw_output_contents
    if len(outputs) != len(contents):
        raise BadReply(f"{response.model_name}: {len(outputs)} outputs with {len(contents)} raw contents")
    return {
        output.name: received(output.name, output.datatype, output.shape, data)
        for output, data in zip(outputs, contents, strict=True)
    }


def _cancelling() -> bool:
    """Whether this task is being cancelled. If not, a CancelledError of grpc.aio says that the call was closed here."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _meaning(name: str, error: "aio.AioRpcError", begun: bool) -> UpstreamError:
    from grpc import StatusCode

    code, details = error.code(), error.details() or ""
    source = f"{name}: {code.name}"
    message = f"{source}: {details}"
    if code is StatusCode.DEADLINE_EXCEEDED:
        return DeadlinePassed("body" if begun else "head", message)
    if code is StatusCode.CANCELLED:
        return Broken(message)
    if code is StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return ReplyTooLarge(message)
    if code is StatusCode.UNAVAILABLE and _NOT_CONNECTED.search(details):
        return ConnectFailed(message)
    meaning = failure(details, source, absent=code is StatusCode.NOT_FOUND)
    if code is StatusCode.UNAVAILABLE and not isinstance(meaning, Unavailable):
        return Broken(message)
    return meaning
