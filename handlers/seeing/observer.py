"""What is told of each request at its beginning and its end, to whoever wants to see something of it."""

from time import perf_counter
from typing import TYPE_CHECKING

from config import Config
from handlers.seeing.cells import Cells
from handlers.seeing.metrics import Metrics
from handlers.seeing.tracing import Tracer

if TYPE_CHECKING:
    from handlers.door.errors import ApiError
    from handlers.door.lifetime import Request
    from handlers.seeing.access import AccessLog


class Observer:
    """One process's, the worker of this `number`; made in its loop. `cells` are those of all workers."""

    def __init__(self, config: Config, cells: Cells, number: int) -> None:
        self._tasks = tasks = {model.id: str(model.task) for model in config.models}
        tracing = config.tracing
        self.metrics = Metrics(cells.rows[number], tasks) if config.metrics.enabled else None
        if self.metrics is not None:
            self.metrics.learn(config.models)
        self._log = _access_log() if config.server.access_log else None
        self._tracer = Tracer(tracing, tasks) if tracing.propagate or tracing.endpoint is not None else None

    def learn(self, config: Config) -> None:
        """The models of new settings; those of before may still have requests."""
        self._tasks.update((model.id, model.task) for model in config.models)
        if self.metrics is not None:
            self.metrics.learn(config.models)

    def refused(self, id: str, error: "ApiError", sent: int) -> None:
        """A head was refused, with so many bytes of an answer's body: no request began."""
        if self.metrics is not None:
            self.metrics.refused(error)
        if self._log is not None:
            self._log.refused(id, error, sent)

    def began(self, request: "Request") -> None:
        """Its head is here."""
        if self.metrics is not None:
            self.metrics.began()
        if self._tracer is not None:
            self._tracer.began(request)

    def ended(self, request: "Request") -> None:
        """Its answer is out, or nobody is there any more; what it took has been given back."""
        now = perf_counter()
        if self.metrics is not None:
            self.metrics.ended(request, now)
            for stage in request.stages:
                self.metrics.count(stage, stage.started_at + stage.lasted)
        if self._log is not None:
            self._log.note(request, now)
        if self._tracer is not None:
            self._tracer.ended(request, now)

    async def close(self) -> None:
        """Returns when what is to be written or sent has been, as far as it can be."""
        if self._log is not None:
            await self._log.close()
        if self._tracer is not None:
            await self._tracer.close()


def _access_log() -> "AccessLog":
    """Imported by a gateway that writes one."""
    from handlers.seeing.access import AccessLog

    return AccessLog()
