"""Conch, an OpenAI gateway for Triton. This is the map: every route, the lifespan, and how the parts are joined."""

import gc
import sys

if sys.argv[1:2] == ["serve"]:
    gc.disable()  # modules are no garbage: looking for some among them is a tenth of a start

import asyncio
import contextlib
import importlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from config import Config, admin_token, metrics_token
from handlers.door.admission import judge
from handlers.door.entrance import Lifetime
from handlers.door.gateway import Gateway
from handlers.door.later import Handler, Handlers, Later, load
from handlers.ops.listening import Listening, listen, url
from handlers.seeing.cells import Cells
from store import open_store
from store.records import Authority, Budget
from upstream.pool import Pool
from upstream.tasks import TASKS

if TYPE_CHECKING:
    from ssl import SSLContext

    from starlette.applications import Starlette
    from starlette.routing import Route

    from handlers import (
        chat,
        completions,
        embeddings,
        images,
        models,
        pipeline,
        rerank,
        responses,
        speech,
        transcriptions,
    )
    from handlers.ops import about, admin, health, openapi
    from handlers.ops.dashboard import Dashboard
    from handlers.ops.reload import Settings
    from handlers.ops.webhooks import admin as webhooks
    from handlers.ops.webhooks.outbox import Outbox
else:  # each is imported when a request first comes for one of its handlers
    chat, completions, embeddings = Handlers("chat"), Handlers("completions"), Handlers("embeddings")
    images, models, rerank = Handlers("images"), Handlers("models"), Handlers("rerank")
    responses, speech, transcriptions = Handlers("responses"), Handlers("speech"), Handlers("transcriptions")
    pipeline = Handlers("pipeline")
    about, admin, health = Handlers("ops.about"), Handlers("ops.admin"), Handlers("ops.health")
    openapi, webhooks = Handlers("ops.openapi"), Handlers("ops.webhooks.admin")

log = logging.getLogger("conch")

AFTER = 1.0
"""Seconds after a heartbeat until webhooks are looked at: the first comes before the socket listens."""

# Under /v1 and /api/v1, and again under /v1/{pipeline}. What has a parameter comes last.
API: list[tuple[str, str, Handler]] = [
    ("POST", "/chat/completions", chat.create),
    ("POST", "/completions", completions.create),
    ("POST", "/responses", responses.create),
    ("POST", "/images/generations", images.create),
    ("POST", "/embeddings", embeddings.create),
    ("POST", "/rerank", rerank.create),
    ("POST", "/audio/speech", speech.create),
    ("POST", "/audio/transcriptions", transcriptions.create),
    ("POST", "/audio/translations", transcriptions.translate),
    ("POST", "/pipeline", pipeline.create),
    ("GET", "/models", models.index),
    ("GET", "/responses/{id}", responses.show),
    ("DELETE", "/responses/{id}", responses.delete),
    ("GET", "/responses/{id}/input_items", responses.input_items),
]
BASES = ("/v1", "/api/v1")
MODEL: tuple[str, str, Handler] = ("GET", "/models/{id:path}", models.show)
OPERATOR: list[tuple[str, str, Handler]] = [
    ("GET", "/healthz", health.healthz),
    ("GET", "/readyz", health.readyz),
    ("GET", "/v1/openapi.json", openapi.show),
    ("GET", "/api/v1/openapi.json", openapi.show),
    ("GET", "/docs", openapi.page),
    ("GET", "/docs/{file}", openapi.asset),
]
ADMIN: list[tuple[str, str, Handler]] = [  # under /admin, where CONCH_ADMIN_TOKEN is set; so is /dashboard
    ("GET", "/workspaces", admin.list_workspaces),
    ("POST", "/workspaces", admin.create_workspace),
    ("GET", "/workspaces/{name}", admin.show_workspace),
    ("PATCH", "/workspaces/{name}", admin.set_workspace),
    ("GET", "/workspaces/{name}/credits", admin.show_credits),
    ("POST", "/workspaces/{name}/credits", admin.grant_credits),
    ("GET", "/workspaces/{name}/grants", admin.list_grants),
    ("GET", "/keys", admin.list_keys),
    ("POST", "/keys", admin.create_key),
    ("GET", "/keys/{id}", admin.show_key),
    ("POST", "/keys/{id}/rotate", admin.rotate_key),
    ("POST", "/keys/{id}/revoke", admin.revoke_key),
    ("GET", "/webhooks", webhooks.list_webhooks),
    ("POST", "/webhooks", webhooks.create_webhook),
    ("GET", "/webhooks/{id}", webhooks.show_webhook),
    ("PATCH", "/webhooks/{id}", webhooks.set_webhook),
    ("DELETE", "/webhooks/{id}", webhooks.delete_webhook),
    ("POST", "/webhooks/{id}/rotate", webhooks.rotate_webhook),
    ("POST", "/webhooks/{id}/test", webhooks.test_webhook),
    ("GET", "/deliveries", webhooks.list_deliveries),
    ("POST", "/deliveries/{id}/resend", webhooks.resend_delivery),
    ("GET", "/plans", admin.list_plans),
    ("GET", "/usage", admin.sum_usage),
    ("GET", "/requests", admin.list_requests),
    ("GET", "/audit", admin.list_events),
    ("GET", "/models", admin.list_models),
    ("GET", "/deployments", admin.list_deployments),
    ("GET", "/about", about.about),
]

SIGNED: tuple[str, str, Handler] = ("GET", "/v1/images/files/{id}", images.show)  # no key: its URL is the right


def build(config: Config, cells: Cells | None = None, number: int = 0) -> Lifetime:
    """The whole application for `config`. Raises ValueError for a store that cannot be used.

    `cells` are what this process, the worker of this number, counts in; None: it does not.
    """
    gateway = Gateway(config)
    gateway.judge = judge(config.plans)

    def rule(authority: Authority, now: int) -> Budget | None:
        return lifetime.gateway.judge(authority, now)  # by the plans of the newest settings

    store = open_store(config.store.url, rule, clock=gateway.clock)

    outbox = cache(lambda: _outbox(lambda: lifetime.gateway))
    gateway.ring = lambda: outbox().ring()
    store.teller.ring = lambda: asyncio.get_running_loop().call_later(AFTER, lambda: outbox().begin())

    @contextlib.asynccontextmanager
    async def lifespan(_: object = None) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await store.migrate()
            stack.push_async_callback(store.close)
            await store.teller.live()
            gateway.store = store
            metrics = None
            if cells is not None:
                from handlers.seeing.observer import Observer

                gateway.observer = observer = Observer(config, cells, number)
                stack.push_async_callback(observer.close)
                metrics = observer.metrics
                store.teller.watch = metrics.transacted if metrics is not None else None
            gateway.pool = Pool(config.upstreams, config.models, metrics)
            stack.push_async_callback(close)
            gateway.pool.watch()
            yield

    async def close() -> None:
        if outbox.cache_info().currsize:
            await outbox().close()
        pools = [each.pool for each in (lifetime.gateway, *lifetime.retired)]
        while pools:
            await pools.pop().close(*pools)
        await lifetime.gateway.close()

    hot, rest = _routes(config)
    gateway.cells = cells if config.metrics.enabled else None
    gateway.routes = rest

    def app() -> "Starlette":
        from starlette.applications import Starlette

        made = Starlette(routes=rest(), lifespan=lifespan)
        made.router.redirect_slashes = False
        return made

    lifetime = Lifetime(gateway, hot, app, lifespan)
    return lifetime


def _outbox(gateway: Callable[[], Gateway]) -> "Outbox":
    """Imported where there are webhooks."""
    from handlers.ops.webhooks.outbox import Outbox

    return Outbox(gateway)


def _routes(config: Config) -> tuple[dict[tuple[str, str], Later], Callable[[], list["Route"]]]:
    """The hot endpoints by method and path, and how Starlette's routes are made, for whatever is not among them."""
    endpoints = {handler: Later(handler, route=f"{method} /v1{path}") for method, path, handler in [*API, MODEL]}
    flat = [(method, base + path, endpoints[handler]) for base in BASES for method, path, handler in API]
    open_to_all = [*OPERATOR, SIGNED]
    operator = [(m, path, Later(handler, route=f"{m} {path}", gate=None)) for m, path, handler in open_to_all]
    hot = {(method, path): endpoint for method, path, endpoint in [*operator, *flat] if "{" not in path}

    def rest() -> list["Route"]:
        from starlette.routing import Route

        piped = [(m, f"{base}/{{pipeline}}{path}", endpoints[handler]) for base in BASES for m, path, handler in API]
        by_id = [(MODEL[0], base + MODEL[1], endpoints[MODEL[2]]) for base in BASES]
        every = [*operator, *_admin(), *_metrics(config), *flat, *piped, *by_id]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in every]

    return hot, rest


def _admin() -> list[tuple[str, str, "Later | Dashboard"]]:
    """None, where there is no token that opens them."""
    token = admin_token()
    if token is None:
        return []
    from handlers.ops import admin
    from handlers.ops.dashboard import Dashboard

    gate, dashboard = admin.gatekeeper(token), Dashboard()
    return [
        *(
            (method, f"/admin{path}", Later(handler, route=f"{method} /admin{path}", gate=gate, headers=admin.HEADERS))
            for method, path, handler in ADMIN
        ),
        ("GET", "/dashboard", dashboard),
        ("GET", "/dashboard/{path:path}", dashboard),
    ]


def _metrics(config: Config) -> list[tuple[str, str, Later]]:
    """None, where nothing is counted."""
    if not config.metrics.enabled:
        return []
    from handlers.ops import metrics

    gate = None if config.metrics.public else metrics.gate(metrics_token(), admin_token())
    return [("GET", "/metrics", Later(metrics.show, route="GET /metrics", gate=gate))]


def serve(config: Config, load: Callable[[], Config]) -> None:
    """Run the gateway until SIGTERM or SIGINT; a second SIGINT does not wait for what is under way.

    SIGHUP has `load` read the settings again.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves: they are just being read
    settings = config.server
    if config.tracing.endpoint is not None:
        from handlers.seeing import tracing

        tracing.check(config.tracing)
    secured = None
    if settings.ssl_certfile:
        from handlers.ops import tls

        secured = tls.context(settings)
    if settings.workers != 1:
        asyncio.run(_migrate(config))  # once, and told in one sentence where the store cannot be used
    listening = listen(settings)
    scheme = "https" if secured else "http"
    addresses = [url(each, scheme) for each in listening.all]

    def started() -> None:
        log.info("listening on %s", addresses[0])
        if listening.admin:
            log.info("/admin is answered on %s", addresses[len(listening.public)])

    @cache
    def known() -> "Settings":
        from handlers.ops.reload import Settings  # at the first SIGHUP

        return Settings(config, load)

    if settings.workers == 1:
        cells = Cells(1, len(config.models))
        _work(lambda: config, lambda: known().again(), listening, secured, cells, 0, listening.all, started)
    else:
        from handlers.ops import workers
        from handlers.ops.reload import Shared

        _import_ahead(config)
        shared = Shared(config)

        def again() -> bool:
            new = known().again()
            if new is not None:
                shared.put(new)
            return new is not None

        work = partial(_work, shared.get, shared.get, listening, secured)
        count = workers.processors() if settings.workers == "auto" else settings.workers
        workers.run(count, listening, partial(work, Cells(count, len(config.models))), started, again)


def _import_ahead(config: Config) -> None:
    """What every worker would import, before they are forked: once, and into memory that they share."""
    for name in ("uvicorn.lifespan.off", "uvicorn.loops.uvloop", "handlers.ops.server"):
        importlib.import_module(name)
    for _, _, handler in API:
        load(handler)
    for model in config.models:
        TASKS[model.task]()


def _work(
    read: Callable[[], Config],
    again: Callable[[], Config | None],
    listening: Listening,
    secured: "SSLContext | None",
    cells: Cells,
    number: int,
    sockets: list[socket.socket],
    started: Callable[[], None],
) -> None:
    """Serve in this process, the worker of this number, on these sockets of `listening`: by what `read` returns, and
    after SIGHUP by what `again` does.

    Raises StoreUnavailable where the store cannot be used.
    """
    from handlers.ops.server import Server  # uvicorn, which a worker imports before it is forked

    application = build(read(), cells, number)
    application.admin_port = listening.admin_port
    Server(application, listening, secured, again, started).run(sockets)


async def _migrate(config: Config) -> None:
    """Before the server, so that a store that cannot be used is told in one sentence."""
    store = open_store(config.store.url, judge(config.plans))
    await store.migrate()
    await store.close()


def main() -> None:
    """`python app.py VERB`, and the binary's `conch VERB`."""
    from handlers.ops import commands

    sys.exit(commands.run(sys.argv[1:], build, serve))


if __name__ == "__main__":
    main()
