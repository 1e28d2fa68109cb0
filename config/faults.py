"""What the types of the settings cannot say: names that point at something, ids that are unique, addresses."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from config.sections import Config, Model, Server

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@*]+")  # as a browser writes it: "null" is a page of nobody
PRICED = {
    "chat": ("input", "cached_input", "output"),
    "embedding": ("input",),
    "rerank": ("input",),
    "image": ("images",),
    "speech": ("characters",),
    "transcription": ("seconds",),
}
RESERVED_SEGMENTS = frozenset(
    {"models", "chat", "completions", "responses", "embeddings", "images", "audio", "rerank", "metrics", "admin"}
    | {"pipeline"}
)


def faults(config: "Config") -> Iterator[str]:
    """A sentence for each."""
    for name, upstream in config.upstreams.items():
        for url in upstream.urls:
            if not _is_address(url, ("http", "https")):
                yield f"[upstreams.{name}] urls: {url!r} is no address such as http://host:8000."
        for address in upstream.grpc:
            url = address if "://" in address else f"grpc://{address}"
            if not _is_address(url, ("grpc", "grpcs"), port=True):
                yield f"[upstreams.{name}] grpc: {address!r} is no address such as host:8001."
        if upstream.grpc and len(upstream.grpc) != len(upstream.urls):
            yield f"[upstreams.{name}] grpc: give one address for each of urls, in their order."
    endpoint = config.tracing.endpoint
    if endpoint is not None and not _is_address(endpoint, ("http", "https")):
        yield f"[tracing] endpoint: {endpoint!r} is no address such as http://collector:4318."
    yield from _of_server(config.server)
    for name, plan in config.plans.items():
        if plan.default > plan.ceiling:
            yield f"plan {name!r}: default {plan.default} is over its ceiling {plan.ceiling}."
    yield from _of_models(config)
    yield from _of_pipelines(config)


def _of_server(server: "Server") -> Iterator[str]:
    address = server.admin_listen
    if address is not None:
        if not _is_address(f"tcp://{address}", ("tcp",), port=True):
            yield f"[server] admin_listen: {address!r} is no address such as 127.0.0.1:9090."
        elif server.port and address.endswith(f":{server.port}"):
            yield f"[server] admin_listen: {address!r} needs a port of its own, other than port."
    if server.ssl_keyfile is not None and server.ssl_certfile is None:
        yield "[server] ssl_keyfile: without ssl_certfile there is no TLS; set both."
    for origin in server.cors_origins:
        if origin == "*" and len(server.cors_origins) > 1:
            yield '[server] cors_origins: "*" stands for all pages, and alone.'
        elif origin != "*" and not _ORIGIN.fullmatch(origin):
            yield f"[server] cors_origins: {origin!r} is no origin such as https://app.example.com (no path, no /)."


def _is_address(text: str, schemes: tuple[str, ...], *, port: bool = False) -> bool:
    """Whether a text is scheme://host[:port][/path] and no more; `port`: whether it must have one."""
    try:
        url = urlsplit(text)
        given = url.port
        (url.hostname or "").encode("idna")
    except ValueError:
        return False
    extra = url.username is not None or url.query or url.fragment or any(map(str.isspace, text))
    return url.scheme in schemes and bool(url.hostname) and not extra and (given is not None or not port)


def _of_models(config: "Config") -> Iterator[str]:
    names: set[str] = set()
    for model in config.models:
        if model.upstream not in config.upstreams:
            yield f"model {model.id!r}: there is no [upstreams.{model.upstream}]."
        for name in (model.id, *model.aliases):
            if name in names or name == "default":
                yield f"model {model.id!r}: the name {name!r} is taken; every id and alias is used once."
            names.add(name)
        if model.max_queue is not None and model.max_inflight is None:
            yield f"model {model.id!r}: max_queue needs max_inflight: without it nothing waits."
        if model.cancel == "stream" and model.task != "chat":
            yield f'model {model.id!r}: cancel = "stream" is for chat; other models are stopped by "grpc", or not.'
        upstream = config.upstreams.get(model.upstream)
        if model.cancel == "grpc" and upstream is not None and not upstream.grpc:
            yield f'model {model.id!r}: cancel = "grpc" needs grpc in [upstreams.{model.upstream}].'
        for name in ("cold_start_wait", "idle_unload"):
            if getattr(model, name) is not None and not model.autoload:
                yield f"model {model.id!r}: {name} needs autoload = true: without it nothing loads the model."
        for fault in _of_price(model):
            yield f"model {model.id!r}: {fault}"


def _of_price(model: "Model") -> Iterator[str]:
    """What a price needs: units that the task has, counts to charge by, and a bound to hold credits by."""
    price = model.price
    if price is None:
        return
    for unit in price.__struct_fields__:
        if getattr(price, unit) and unit not in PRICED[model.task]:
            yield f"price.{unit} is not for {model.task}; use {', '.join(PRICED[model.task])}."
    if model.task == "chat":
        if model.max_output is None:
            yield "a model with a price needs max_output: it bounds what a request can cost."
        if price.cached_input is not None and "cached_tokens" not in model.outputs:
            yield "price.cached_input needs cached_tokens in [models.out]."
        if price.cached_input is not None and price.cached_input > price.input:
            yield "price.cached_input is over price.input: what a request may cost is held at that."
        for unit, count in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            if getattr(price, unit) and count not in model.outputs:
                yield f"price.{unit} needs {count} in [models.out]: nothing else tells what to charge."
    elif model.task in ("embedding", "rerank") and price.input:
        settings = model.embedding if model.task == "embedding" else model.rerank
        if settings.tokenizer is None and "prompt_tokens" not in model.outputs:
            yield "price.input needs prompt_tokens in [models.out], or a tokenizer: nothing else tells what to charge."


def _of_pipelines(config: "Config") -> Iterator[str]:
    by_id = {model.id: model for model in config.models}
    seen: set[str] = set()
    for pipeline in config.pipelines:
        if pipeline.id in RESERVED_SEGMENTS or pipeline.id in seen:
            yield f"pipeline {pipeline.id!r}: the id is a route's or another pipeline's; choose another."
        seen.add(pipeline.id)
        for task, id in pipeline.models.items():
            if id not in by_id or by_id[id].task != task:
                yield f"pipeline {pipeline.id!r}: {task} = {id!r} is no {task} model's id."
        for name, task in (("system", "chat"), ("voice", "speech")):
            if getattr(pipeline, name) is not None and task not in pipeline.models:
                yield f"pipeline {pipeline.id!r}: {name} needs a model for {task}."
        speaker = by_id.get(pipeline.models.get("speech", ""))
        voices = speaker.speech.voices if speaker is not None else {}
        if pipeline.voice is not None and voices and pipeline.voice not in voices:
            yield f"pipeline {pipeline.id!r}: voice = {pipeline.voice!r} is none of {', '.join(voices)}."
