"""uvicorn's server on the application: how it begins to listen, takes new settings, and ends."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from config import Config
from handlers.door.entrance import Lifetime
from handlers.door.protocol import HeadProtocol, configured
from handlers.ops import limits
from handlers.ops.listening import Listening

if TYPE_CHECKING:
    from ssl import SSLContext

    from handlers.ops.reload import Reloading


log = logging.getLogger("conch")

CROWD = 50
"""Requests at once from which on memory is given back when nine of ten have gone."""


class Server(uvicorn.Server):
    """One process's, on some of the sockets of `listening`. After SIGHUP it goes by what `again` returns."""

    def __init__(
        self,
        application: Lifetime,
        listening: Listening,
        secured: "SSLContext | None",
        again: Callable[[], Config | None],
        started: Callable[[], None],
    ) -> None:
        settings = application.gateway.config.server
        self._application, self._listening, self._secured = application, listening, secured
        self._again, self._is_started = again, started
        self._header_timeout = settings.header_timeout
        self._protocol: type[HeadProtocol] = configured(settings)
        self._protocol.limit(settings, limits.claim(settings.max_connections))
        self._running = contextlib.AsyncExitStack()
        self._most = 0  # requests at once, since memory was last given back
        super().__init__(
            uvicorn.Config(
                application,
                loop="uvloop",
                interface="asgi3",
                http=self._protocol,
                ws="none",
                lifespan="off",  # uvicorn's would go through Starlette, and say no more than that it failed
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],
                timeout_keep_alive=int(settings.keep_alive),
                timeout_graceful_shutdown=int(settings.drain),
            )
        )

    @cached_property
    def _reloading(self) -> "Reloading":
        from handlers.ops.reload import Reloading  # at the first SIGHUP

        return Reloading(self._application, self, self._protocol, self._secured)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In the main thread, between any two of its steps."""
        gateway = self._application.gateway
        delay = 0.0 if gateway.draining or sig != signal.SIGTERM else gateway.config.server.drain_delay
        gateway.draining = True
        if delay and self.started:
            loop = self.servers[0].get_loop()
            loop.call_soon_threadsafe(loop.call_later, delay, self.handle_exit, sig, frame)
            return
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise it again at the end: a clean stop exits with 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises StoreUnavailable where the store cannot be used."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._reloading.begin(self._again))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a worker is born with them blocked
        await self._running.enter_async_context(self._application.lifespan())
        self._protocol.observer = self._application.gateway.observer
        self.servers = [await self._listen(each) for each in sockets or ()]
        self.started = True
        _spare_the_collector()
        self._is_started()

    async def on_tick(self, counter: int) -> bool:
        """Each tenth of a second."""
        running = len(self.server_state.tasks)
        self._most = max(self._most, running)
        if self._most >= CROWD and running <= self._most // 10 and counter % 10 == 0:
            log.debug("after %d requests at once: memory is given back", self._most)
            self._most = running
            _give_back()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, then end what the application has open."""
        self._listening.stop(sockets or [])  # a worker's parent has them too, and they would take connections on
        await super().shutdown(sockets)
        if not self.force_exit:
            await self._running.aclose()

    async def _listen(self, on: socket.socket) -> asyncio.Server:
        """As uvicorn's, which would wait a minute for a handshake."""
        limited: Any = {"ssl": self._secured, "ssl_handshake_timeout": self._header_timeout} if self._secured else {}

        def connected() -> asyncio.Protocol:
            return self._protocol(self.config, self.server_state, self.lifespan.state)

        return await asyncio.get_running_loop().create_server(connected, sock=on, backlog=2048, **limited)


def _give_back() -> None:
    """What the allocators keep of a crowd's memory, as far as they can: Python's own has arenas of 1 MiB, and frees
    one only when nothing is left in it. Once for a crowd, as it takes some milliseconds."""
    from ctypes import pythonapi  # in which the C library's are found too

    gc.collect()
    trim = getattr(pythonapi, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _spare_the_collector() -> None:
    """What was made at start lives as long as the process: a full collection that walks it stops every request for
    20 ms, the first of all. Requests leave hardly any cycles behind, so it may also look less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    gc.enable()
