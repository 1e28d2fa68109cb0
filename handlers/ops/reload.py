"""SIGHUP: conch.toml is read again. New requests go by the new settings, those under way end on the old ones."""

import asyncio
import logging
import os
import struct
from collections.abc import Callable, Iterator
from ssl import SSLContext
from typing import Any

from msgspec.structs import replace

from config import Config, ConfigError
from handlers.door.admission import judge
from handlers.door.entrance import Lifetime
from handlers.door.gateway import Gateway
from handlers.door.protocol import HeadProtocol
from handlers.ops import limits, tls
from upstream.pool import Pool

log = logging.getLogger("conch")

LASTING = {
    "server": ("host", "port", "workers", "admin_listen", "access_log"),
    "store": ("url", "max_files"),
    "metrics": ("enabled", "public"),
    "tracing": ("propagate", "endpoint", "sample", "service"),
}
"""What only a restart changes: sockets, processes, the store and what sees the requests are made once."""


class Settings:
    """The settings that serve now, and `load`, which reads them again."""

    def __init__(self, now: Config, load: Callable[[], Config]) -> None:
        self.now = now
        self._load = load

    def again(self) -> Config | None:
        """What holds from now on; None, and the log says why, where the new ones cannot be used."""
        try:
            new = self._load()
            if (new.server.ssl_certfile is None) != (self.now.server.ssl_certfile is None):
                raise ConfigError("[server] ssl_certfile: TLS begins and ends with a restart only.")
            tls.context(new.server)
        except ConfigError as error:
            log.error("the settings are not taken, and nothing has changed: %s", error)
            return None
        for setting in waiting(self.now, new):
            log.warning("%s is another now: that takes a restart; the rest is taken", setting)
        self.now = _lasting(self.now, new)
        return self.now


def waiting(old: Config, new: Config) -> Iterator[str]:
    """The settings that differ and cannot change while it runs."""
    for section, names in LASTING.items():
        for name in names:
            if getattr(getattr(old, section), name) != getattr(getattr(new, section), name):
                yield f"[{section}] {name}"


def _lasting(old: Config, new: Config) -> Config:
    sections = {}
    for section, names in LASTING.items():
        was = getattr(old, section)
        sections[section] = replace(getattr(new, section), **{name: getattr(was, name) for name in names})
    return replace(new, **sections)


class Shared:
    """The settings that a parent read last, for its workers: in memory that all of them have open."""

    def __init__(self, config: Config) -> None:
        self._file = os.memfd_create("conch settings")
        self._end = _PLACE.size
        self.put(config)

    def put(self, config: Config) -> None:
        """Behind those that a worker may be reading; they are many kilobytes, and reloads few."""
        import pickle

        data = pickle.dumps(config)
        os.pwrite(self._file, data, self._end)
        os.pwrite(self._file, _PLACE.pack(self._end, len(data)), 0)
        self._end += len(data)

    def get(self) -> Config:
        """The newest."""
        import pickle

        start, size = _PLACE.unpack(os.pread(self._file, _PLACE.size, 0))
        config: Config = pickle.loads(os.pread(self._file, size, start))
        return config


_PLACE = struct.Struct("QQ")


class Reloading:
    """Puts new settings in the place of those by which one process serves. `server` is uvicorn's."""

    def __init__(
        self, application: Lifetime, server: Any, protocol: type[HeadProtocol], secured: SSLContext | None
    ) -> None:
        self._application, self._server, self._protocol, self._secured = application, server, protocol, secured
        self._turn = asyncio.Lock()
        self._ends: set[asyncio.Task[None]] = set()

    def begin(self, read: Callable[[], Config | None]) -> None:
        """Have what `read` returns, if it does, taken as soon as its models have been looked at."""
        self._keep(asyncio.get_running_loop().create_task(self._reload(read)))

    async def _reload(self, read: Callable[[], Config | None]) -> None:
        async with self._turn:
            config = await asyncio.to_thread(read)
            if config is None:
                return
            try:
                await self._replace(config)
            except Exception:
                log.exception("the settings are not taken, and nothing has changed")

    async def _replace(self, config: Config) -> None:
        application, settings = self._application, config.server
        old = application.gateway
        new = old.successor(config)
        new.judge = judge(config.plans)
        new.pool = await old.pool.successor(config.upstreams, config.models)
        try:
            verified = await new.pool.settled()
            if self._secured is not None:
                tls.read(self._secured, settings)
        except BaseException:
            await new.pool.close(*self._pools())
            raise
        new.pool.take_over(config.models)
        if new.observer is not None:
            new.observer.learn(config)
        new.draining = old.draining  # it may have been told to stop meanwhile
        application.gateway = new
        application.retired.append(old)
        logging.getLogger("conch").setLevel(settings.log_level.upper())
        self._protocol.limit(settings, limits.claim(settings.max_connections))
        self._server.config.timeout_keep_alive = int(settings.keep_alive)
        self._server.config.timeout_graceful_shutdown = int(settings.drain)
        log.info("the settings were read again; %d of %d models are verified", len(verified), len(config.models))
        self._keep(asyncio.get_running_loop().create_task(self._retire(old)))

    async def _retire(self, old: Gateway) -> None:
        """Once the requests that go by it have ended."""
        if under_way := set(self._server.server_state.tasks):
            await asyncio.wait(under_way)
        self._application.retired.remove(old)
        await old.pool.close(*self._pools())

    def _pools(self) -> list[Pool]:
        """Those by which requests go."""
        return [each.pool for each in (self._application.gateway, *self._application.retired)]

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
