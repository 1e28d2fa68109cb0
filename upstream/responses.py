"""A gRPC stream of a deployment: begun by its first read, and counted where it runs until it is closed."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from upstream.errors import Closed, UpstreamError
from upstream.replica import Replica
from upstream.tensors import Array

if TYPE_CHECKING:
    from upstream.deployment import Deployment
    from upstream.grpc import GrpcStream

Response = dict[str, Array] | None


class Responses:
    """The responses to one request, in their order; `close` cancels what is still to come. One reader at a time."""

    def __init__(self, deployment: "Deployment", begin: Callable[[Replica, float], Awaitable["GrpcStream"]]) -> None:
        self._deployment = deployment
        self._begin = begin
        self._replica: Replica | None = None
        self._stream: GrpcStream | None = None
        self._closed = False

    async def read(self) -> Response:
        """The outputs of the next response; None when Triton has ended the stream well. Raises UpstreamError."""
        if self._stream is None:
            return await self._deployment.ask(self._first)
        try:
            return await self._stream.read()
        except UpstreamError as error:
            if self._replica is not None:
                self._deployment.note(self._replica, error)
            raise

    def close(self) -> None:
        """Cancel at Triton what is not complete; at once, also before the first response. Twice is once."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()
        if self._replica is not None:
            self._replica.leave()
            self._replica = None

    async def _first(self, replica: Replica, deadline: float) -> Response:
        """Read up to the first response: until then, nothing is known to have run."""
        self._check_open()
        self._stream = stream = await self._begin(replica, deadline)
        try:
            self._check_open()
            response = await stream.read()
        except BaseException as error:
            stream.close()
            self._stream = None
            if isinstance(error, UpstreamError):
                self._check_open()
            raise
        self._replica = replica
        return response

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("closed here before its first response")
