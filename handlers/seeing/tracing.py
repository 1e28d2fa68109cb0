"""Traces: a request's W3C traceparent passed on to Triton and, where a collector is configured, its spans over OTLP.

The only home of OpenTelemetry, which is imported where spans are sent. Of a request that is traced, identifiers are
chosen at its beginning; its spans are made when it has ended.
"""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from config import ConfigError, Tracing
from handlers.seeing.metrics import OPERATIONS, PROVIDER, ending
from upstream.trace import TRACE, Trace

if TYPE_CHECKING:
    from handlers.door.lifetime import Request

_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(rb"[\x20-\x7e]{1,512}")
SAMPLED = 1


def read(request: "Request") -> tuple[str, str, str, str] | None:
    """Trace, parent span, flags and state of a request that is part of a trace; None for what is no valid traceparent.

    https://www.w3.org/TR/trace-context: versions to come may say more, after what this one says.
    """
    header = request.header(b"traceparent")
    found = _PARENT.fullmatch(header) if header is not None else None
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    state = request.header(b"tracestate") or b""
    return found[2].decode(), found[3].decode(), found[4].decode(), state.decode() if _STATE.fullmatch(state) else ""


class Tracer:
    """Begins and ends the trace of each request."""

    def __init__(self, settings: Tracing, tasks: Mapping[str, str]) -> None:
        self._sample = settings.sample
        self._spans = Spans(settings, tasks) if settings.endpoint is not None else None

    def began(self, request: "Request") -> None:
        """A request has come, in whose task this is called."""
        told = read(request)
        trace = None
        if told is not None:
            id, parent, flags, state = told
            if self._spans is not None and int(flags, 16) & SAMPLED:
                trace = Trace(id, parent, flags, state, server=_id(64), client=_id(64))
            else:
                trace = Trace(id, parent, flags, state)
        elif self._spans is not None and random.random() < self._sample:
            trace = Trace(_id(128), "", "01", "", server=_id(64), client=_id(64))
        request.trace = trace
        TRACE.set(trace)

    def ended(self, request: "Request", now: float) -> None:
        """A request has ended, at a perf_counter()."""
        if request.trace is not None and request.trace.server and self._spans is not None:
            self._spans.send(request, request.trace, now)

    async def close(self) -> None:
        """Returns when what there is has been sent, or cannot be."""
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)


class Spans:
    """Sends spans in the background, in batches, to the collector that the settings name."""

    def __init__(self, settings: Tracing, tasks: Mapping[str, str]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        assert settings.endpoint is not None
        path = "" if urlsplit(settings.endpoint).path.strip("/") else "/v1/traces"
        self._tasks = tasks
        self._resource = Resource.create({"service.name": settings.service})
        self._batches = BatchSpanProcessor(OTLPSpanExporter(settings.endpoint.rstrip("/") + path))
        self.close = self._batches.shutdown

    def send(self, request: "Request", trace: Trace, now: float) -> None:
        """The span of the request, and that of what was asked of Triton, if anything was."""
        from opentelemetry.trace import SpanKind

        wall = time.time_ns()

        def at(moment: float) -> int:
            return wall - int((now - moment) * 1e9)

        shared = self._shared(request)
        status, code = ending(request)
        route = request.endpoint.route.partition(" ")[2] if request.endpoint is not None else ""
        method = request.scope["method"]
        about = {
            "http.request.method": method,
            "http.response.status_code": status,
            "conch.request_id": request.id,
            **({"http.route": route} if route else {}),
            **({"conch.workspace": request.authority.workspace.name} if request.authority is not None else {}),
            **shared,
        }
        failed = code if status >= 500 or (code and request.status == 200) else ""
        times = at(request.started_at), wall
        name = f"{method} {route}".strip()
        self._end(name, SpanKind.SERVER, trace, trace.server, trace.parent, times, about, code, failed)
        sent = trace.sent_at
        if sent:
            times = at(sent), at(min(sent + request.upstream_seconds, now) if request.upstream_seconds else now)
            self._end(_asked(shared), SpanKind.CLIENT, trace, trace.client, trace.server, times, shared, code, failed)
        for stage in request.stages:
            times, about = (at(stage.started_at), at(stage.started_at + stage.lasted)), self._shared(stage)
            _, code = ending(stage)
            self._end(_asked(about), SpanKind.INTERNAL, trace, _id(64), trace.server, times, about, code, code)

    def _shared(self, request: "Request") -> dict[str, Any]:
        """What OpenTelemetry's conventions for generative AI say of a request."""
        if request.model is None or request.endpoint is None:
            return {}
        task = self._tasks[request.model]
        told: dict[str, Any] = {
            "gen_ai.operation.name": OPERATIONS.get(request.endpoint.route.partition(" ")[2], task),
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": request.model,
        }
        usage = request.bill.usage if request.bill is not None else None
        if usage is not None and usage.units.input_tokens:
            told["gen_ai.usage.input_tokens"] = usage.units.input_tokens
        if usage is not None and usage.units.output_tokens:
            told["gen_ai.usage.output_tokens"] = usage.units.output_tokens
        return told

    def _end(
        self,
        name: str,
        kind: Any,
        trace: Trace,
        id: str,
        parent: str,
        times: tuple[int, int],
        attributes: dict[str, Any],
        code: str,
        failed: str,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def context(span: str, *, remote: bool) -> SpanContext:
            return SpanContext(int(trace.id, 16), int(span, 16), remote, TraceFlags(SAMPLED))

        span: ReadableSpan = ReadableSpan(
            name,
            context(id, remote=False),
            context(parent, remote=parent == trace.parent) if parent else None,
            self._resource,
            attributes | ({"error.type": code} if code else {}),
            kind=kind,
            status=Status(StatusCode.ERROR, failed) if failed else Status(),
            start_time=times[0],
            end_time=times[1],
        )
        self._batches.on_end(span)


def _asked(about: Mapping[str, Any]) -> str:
    """The name of a span: what is asked of a model; of several, it is Triton that is asked."""
    return f"{about['gen_ai.operation.name']} {about['gen_ai.request.model']}" if about else "triton"


def check(settings: Tracing) -> None:
    """Raises ConfigError where spans are to be sent and OpenTelemetry is not installed."""
    try:
        missing = settings.endpoint is not None and find_spec("opentelemetry.exporter.otlp.proto.http") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise ConfigError(
            "[tracing] endpoint: OpenTelemetry is not installed;"
            " run pip install -r requirements/tracing.txt, or leave endpoint out."
        )


def _id(bits: int) -> str:
    """Random, and never 0, which is none."""
    return f"{random.getrandbits(bits) or 1:0{bits // 4}x}"
