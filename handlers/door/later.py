"""Handlers that are imported, and endpoints that are compiled, when a request first comes for them: a start waits for
none of them."""

from collections.abc import Awaitable, Callable
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Receive, Scope, Send

from handlers.door.lifetime import Request

if TYPE_CHECKING:
    from handlers.door.wire import Endpoint

Handler = Callable[..., Awaitable[Any]]


class Handlers:
    """Stands in the map for a module of handlers: what is taken of it is the name of a handler, for `load`."""

    def __init__(self, module: str) -> None:
        self._module = f"handlers.{module}"

    def __getattr__(self, name: str) -> "Name":
        return Name(self._module, name)


class Name(NamedTuple):
    """A handler whose module need not be imported yet."""

    module: str
    name: str


def load(handler: Handler | Name) -> Handler:
    """The handler behind a name. Raises AttributeError where its module has no such thing."""
    if not isinstance(handler, Name):
        return handler
    loaded: Handler = getattr(import_module(handler.module), handler.name)
    return loaded


class Later:
    """An Endpoint with these `options`, made by the first request for it; `serve` then is its own."""

    def __init__(self, handler: Handler | Name, **options: Any) -> None:
        self._handler, self._options = handler, options
        self.serve: Callable[[Request], Awaitable[None]] = self._first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's way in: the Lifetime has opened the request already."""
        request: Request = scope["conch"]
        request.path_params = scope["path_params"]
        await self.serve(request)

    @cached_property
    def made(self) -> "Endpoint":
        """The endpoint itself."""
        from handlers.door.wire import Endpoint

        return Endpoint(load(self._handler), **self._options)

    async def _first(self, request: Request) -> None:
        self.serve = self.made.serve
        await self.serve(request)
