"""The ASGI application: which endpoint a request is for, and whether there is room for it."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from handlers.door.errors import OVERLOADED, unrouted
from handlers.door.lifetime import Request

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from handlers.door.gateway import Gateway

ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})  # answered also when there is no room
PRIVATE = ("/admin", "/dashboard", "/metrics")  # on `admin_listen` alone, where that is set


async def _hide(request: Request) -> None:
    raise unrouted(404, request.scope["method"], request.scope["path"], ())


async def _crowded(_: Request) -> None:
    """Before anything is taken or asked: it costs next to nothing."""
    raise OVERLOADED


class Lifetime:
    """The ASGI application that the server calls: hot routes by a table, everything else through Starlette."""

    def __init__(
        self,
        gateway: "Gateway",
        table: Mapping[tuple[str, str], Any],
        make_app: "Callable[[], Starlette]",
        lifespan: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self.gateway = gateway
        self.retired: list[Gateway] = []  # by which requests still go that came before a reload
        self.table = table
        self.lifespan = lifespan
        self._make_app = make_app
        self.admin_port: int | None = None  # where alone PRIVATE is answered; None: everywhere

    @cached_property
    def app(self) -> "Starlette":
        """Imported and made for the first request that is not hot: a start waits for neither."""
        return self._make_app()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        request = Request(self.gateway, scope, receive)
        endpoint = self.table.get((scope["method"], scope["path"]))
        if len(request.connection.tasks) > self.gateway.config.server.max_requests and scope["path"] not in ALWAYS:
            return request.run(_crowded)
        if self.admin_port is not None and self._is_hidden(scope):
            return request.run(_hide)
        if endpoint is not None:
            return request.run(endpoint.serve)
        scope["conch"] = request
        return request.run(lambda _: self._route(scope, receive, send))

    def _is_hidden(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path.startswith(PRIVATE) and scope["server"][1] != self.admin_port

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's router without its middleware, which would answer errors itself."""
        cors = self.gateway.cors
        if cors is not None and scope["method"] == "OPTIONS" and await cors.preflight(scope["conch"]):
            return
        from starlette.exceptions import HTTPException

        scope["app"] = self.app
        try:
            await self.app.router(scope, receive, send)
        except HTTPException as error:
            raise unrouted(error.status_code, scope["method"], scope["path"], self._allowed(scope)) from None
        finally:
            del scope["conch"]  # which has the scope

    def _allowed(self, scope: Scope) -> set[str]:
        """The methods of all routes of this path; the router itself names those of the first one."""
        from starlette.routing import Match, Route

        found = [route for route in self.app.router.routes if route.matches(scope)[0] is not Match.NONE]
        return {method for route in found if isinstance(route, Route) for method in route.methods or ()}
