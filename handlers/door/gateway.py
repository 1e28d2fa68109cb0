"""What `app.build` made for the handlers: the settings, the store's teller, the pool of deployments."""

from collections.abc import Mapping, Sequence

from starlette.routing import Route

from config import Config, Model, Pipeline
from handlers.door.billing import Tariff
from handlers.door.files import Files
from handlers.door.recent import Recent
from store import Store
from store.teller import Clock
from upstream.fetch import Fetcher
from upstream.pool import Pool

VERSION = "0.1.0"


class Gateway:
    """Reaches every handler as `request.gateway`; `store` and `pool` exist while the application's lifespan runs."""

    store: Store
    pool: Pool
    fetcher: Fetcher
    files: Files

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clock = Clock()
        self.running = 0  # requests
        self.started = self.clock() // 1_000_000  # unix seconds
        self.models: Mapping[str, Model] = {model.id: model for model in config.models}
        self.tariffs = {model.id: Tariff(model.price) for model in config.models if model.price is not None}
        self.recent = Recent() if config.store.when_down == "open" else None
        self.routes: Sequence[Route] = ()
        self.openapi: bytes | None = None  # the document of these routes, once it has been asked for
        self.pipelines: Mapping[str, Pipeline] = {pipeline.id: pipeline for pipeline in config.pipelines}

    def enter(self) -> None:
        """A request begins."""
        self.running += 1
        self.store.teller.alone = self.running == 1

    def leave(self) -> None:
        """A request has ended."""
        self.running -= 1
        self.store.teller.alone = self.running == 1
