"""What a trace passes: an OTLP collector over HTTP, and proxies before Triton that note the headers they see."""

import asyncio
import contextlib
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from grpc import aio  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SERVICE = "/inference.GRPCInferenceService/"


class Collector:
    """Spans by name, as they came: the protobuf messages, and the resource that they are of."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []
        self.paths: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans |= {span.name: span for span in scope.spans}

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Yields its address."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                collector.take(self.path, body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    """Those of a span."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextlib.asynccontextmanager
async def http_proxy(url: str, seen: list[bytes]) -> AsyncIterator[str]:
    """Passes bytes both ways; `seen` gets what clients send."""
    there = urlsplit(url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: list[bytes] | None) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if note is not None:
                    note.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, down = await asyncio.open_connection(there.hostname, there.port)
        await asyncio.gather(pass_on(reader, down, seen), pass_on(upstream, writer, None))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@contextlib.asynccontextmanager
async def grpc_proxy(address: str, seen: list[dict[str, str]]) -> AsyncIterator[str]:
    """Passes the messages of every stream on as they are; `seen` gets the metadata of each."""
    from grpc import GenericRpcHandler, unary_stream_rpc_method_handler

    channel = aio.insecure_channel(address)
    call = channel.unary_stream(f"{SERVICE}ModelStreamInfer")

    class Handler(GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            async def stream(message: bytes, context: Any) -> AsyncIterator[bytes]:
                seen.append({key: str(value) for key, value in context.invocation_metadata()})
                async for reply in call(message):
                    yield reply

            return unary_stream_rpc_method_handler(stream)

    server = aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    await channel.close()
