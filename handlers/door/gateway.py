"""What `app.build` made for the handlers: the settings, the store's teller, the pool of deployments."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING

from config import Config, Model, Pipeline
from handlers.door.billing import Tariff
from handlers.door.recent import Recent
from store import Store
from store.buckets import Judge
from store.teller import Clock
from upstream.pool import Pool

if TYPE_CHECKING:
    from starlette.routing import Route

    from handlers.door.cors import Cors
    from handlers.door.files import Files
    from handlers.door.observer import Observer
    from upstream.fetch import Fetcher

VERSION = "0.1.0"


class Gateway:
    """Reaches every handler as `request.gateway`; `store` and `pool` exist while the application's lifespan runs."""

    store: Store
    pool: Pool
    judge: Judge

    def __init__(self, config: Config) -> None:
        self.observer: Observer | None = None  # None where nobody wants to see anything
        self.clock = Clock()
        self.running = 0  # requests
        self.started = self.clock() // 1_000_000  # unix seconds
        self.draining = False  # told to stop: what is under way ends, and nobody is to send more
        self.recent: Recent | None = None
        self.routes: Callable[[], Sequence[Route]] = tuple  # all of them, for who describes them
        self.cells: object = None  # what the processes count in
        self.ring: Callable[[], None] = lambda: None  # somebody may be to be told of something: webhooks
        self._configure(config)

    def successor(self, config: Config) -> "Gateway":
        """One for other settings, on the same store; it needs a judge and a pool of its own."""
        _ = self.files, self.fetcher  # made by now, so that there is one of each
        other = copy(self)
        other.running = 0  # each counts those that go by it
        other._configure(config)
        return other

    def _configure(self, config: Config) -> None:
        self.config = config
        self.models: Mapping[str, Model] = {model.id: model for model in config.models}
        self.tariffs = {model.id: Tariff(model.price) for model in config.models if model.price is not None}
        self.recent = (self.recent or Recent()) if config.store.when_down == "open" else None
        self.tells_servers = config.server.log_level == "debug"  # in a header: X-Conch-Upstream
        self.openapi: bytes | None = None  # the description of the API, once it has been asked for
        self.cors = _cors(config.server.cors_origins) if config.server.cors_origins else None
        self.pipelines: Mapping[str, Pipeline] = {pipeline.id: pipeline for pipeline in config.pipelines}

    def enter(self) -> None:
        """A request begins."""
        self.running += 1
        self.store.teller.alone = self.running == 1

    def leave(self) -> None:
        """A request has ended."""
        self.running -= 1
        self.store.teller.alone = self.running == 1

    @cached_property
    def files(self) -> "Files":
        """The files behind signed URLs; imported by who first keeps or asks for one."""
        from handlers.door.files import Files

        return Files(self.store, self.config.store.max_files, self.clock)

    @cached_property
    def fetcher(self) -> "Fetcher":
        """As `files`."""
        from upstream.fetch import Fetcher

        return Fetcher()

    async def close(self) -> None:
        """End what handlers opened here."""
        if "fetcher" in self.__dict__:
            await self.fetcher.close()


def _cors(origins: Sequence[str]) -> "Cors":
    from handlers.door.cors import Cors

    return Cors(origins)
