"""Models that are loaded when they are asked for, and unloaded when nobody has asked for long."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from upstream.errors import BadReply, Loading, ModelFailed, Unavailable, UpstreamError
from upstream.http import Client

if TYPE_CHECKING:
    from upstream.deployment import Deployment
    from upstream.queue import Watcher
    from upstream.replica import Replica

log = logging.getLogger("conch")

JSON = {"Content-Type": "application/json"}
COLD_START_WAIT = 30.0
LOAD_TIMEOUT = 1800.0  # of the largest models from a slow disk
CALL_TIMEOUT = 10.0
FIRST_RETRY, LONGEST_RETRY = 10.0, 600.0
"""Seconds for which a load that failed is not asked for again; doubled each time, up to the latter."""


class _Entry(msgspec.Struct):
    name: str
    state: str = ""


class _Model(msgspec.Struct):
    last_inference: int = 0


class _Stats(msgspec.Struct):
    model_stats: list[_Model] = []


class _Error(msgspec.Struct):
    error: str = ""


class Repository:
    """One model in the repository of one Triton, which must run with --model-control-mode=explicit."""

    def __init__(self, client: Client, model: str) -> None:
        self._model = model
        path = quote(model, safe="")
        self._index = client.target("POST", "/v2/repository/index", JSON)
        self._load = client.target("POST", f"/v2/repository/models/{path}/load", JSON)
        self._unload = client.target("POST", f"/v2/repository/models/{path}/unload", JSON)
        self._stats = client.target("GET", f"/v2/models/{path}/stats", {})

    async def state(self) -> str | None:
        """READY, LOADING, UNLOADING or UNAVAILABLE; empty if never loaded; None if Triton does not know the model."""
        entries = await self._call(self._index, list[_Entry], b"{}")
        states = [entry.state for entry in entries if entry.name == self._model]
        return max(states) if states else None  # of several versions; UNLOADING comes last by the alphabet, too

    async def load(self) -> None:
        """Return when it is loaded. Raises UpstreamError with Triton's reason where it cannot be."""
        await self._call(self._load, None, b"{}", LOAD_TIMEOUT)

    async def unload(self) -> None:
        """Return when it is gone, and what was under way there has ended."""
        await self._call(self._unload, None, b"{}")
        while await self.state() == "UNLOADING":  # noqa: ASYNC110 - Triton tells no event
            await asyncio.sleep(0.1)

    async def last_used(self) -> int:
        """When Triton last ran it, for whomever, in ms of the server's clock."""
        stats = await self._call(self._stats, _Stats)
        return max((each.last_inference for each in stats.model_stats), default=0)

    async def _call(self, target: Any, kind: Any, body: bytes = b"", timeout: float = CALL_TIMEOUT) -> Any:
        reply = await target.call(body, deadline=asyncio.get_running_loop().time() + timeout)
        try:
            if reply.status != 200:
                raise ModelFailed(msgspec.json.decode(reply.body, type=_Error).error or f"status {reply.status}")
            return msgspec.json.decode(reply.body, type=kind) if kind is not None else None
        except msgspec.MsgspecError as error:
            raise BadReply(f"{target.name}: {error}") from error


class Loader:
    """Loads a deployment's model on the servers that know it. `loads` and `unloads` count what Triton was asked for,
    `cold` the requests that found no server with it."""

    def __init__(self, deployment: "Deployment", watcher: "Watcher") -> None:
        settings = deployment.settings
        self.loads = self.unloads = self.failed_loads = self.cold = 0
        self.unloading: asyncio.Task[None] | None = None
        self._deployment, self._watcher = deployment, watcher
        self._wait = COLD_START_WAIT if settings.cold_start_wait is None else settings.cold_start_wait
        self._idle = settings.idle_unload
        self._loading: dict[Replica, asyncio.Task[None]] = {}
        self._retry: dict[
            Replica, tuple[float, float]
        ] = {}  # when a load may be asked for again, and the wait till then
        self._changed = asyncio.Event()
        self._quiet = True  # nobody has asked since idle_unload ago

    @property
    def loading(self) -> bool:
        """Whether Triton is loading it for us."""
        return bool(self._loading)

    async def wake(self) -> None:
        """Return when a server has the model. Raises Loading when that takes too long, Unavailable when none can."""
        self.cold += 1
        self._quiet = False
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            async with asyncio.timeout(self._wait):
                while not self._deployment.verified:
                    if (unloading := self.unloading) is not None:
                        await asyncio.wait([unloading])
                    self._begin()
                    if not self._loading:
                        raise Unavailable(f"{self._deployment.id}: {self._deployment.reason}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise Loading(f"{self._deployment.id}: not loaded within {self._wait:g} s") from error
        finally:
            self._watcher.woken(self._deployment.id, loop.time() - since)

    def follow(self) -> None:
        """Have a server that came without the model load it while others are in use."""
        if self._deployment.verified and not self._quiet and self.unloading is None:
            self._begin()

    async def mind(self) -> None:
        """Unload the model whenever nobody has used it for `idle_unload`, at this gateway or at another."""
        if self._idle is None:
            return
        deployment, loop = self._deployment, asyncio.get_running_loop()
        before, since = None, loop.time()
        while True:
            await asyncio.sleep(self._idle / 4)
            if not deployment.verified:
                before = None
                continue
            asked = self._asked()
            try:
                seen = asked, [await each.repository.last_used() for each in deployment.serving if each.repository]
            except UpstreamError:
                continue  # its check will tell
            if seen != before or asked != self._asked() or self._busy():
                before, since = seen, loop.time()
                self._quiet = False
            elif loop.time() - since >= self._idle:
                self._quiet = True
                self.unloading = asyncio.create_task(self._unload())
                await asyncio.wait([self.unloading])
                before = None

    async def close(self) -> None:
        """Wait for no load any longer."""
        tasks = [*self._loading.values(), *([self.unloading] if self.unloading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _asked(self) -> int:
        return sum(replica.requests for replica in self._deployment.replicas)

    def _busy(self) -> bool:
        replicas = self._deployment.replicas
        return bool(self._deployment.queue.waiting) or any(replica.outstanding for replica in replicas)

    def _begin(self) -> None:
        """Ask each server that could load the model and is not doing so."""
        now = asyncio.get_running_loop().time()
        for replica in self._deployment.replicas:
            if replica.loadable and replica not in self._loading and now >= self._retry.get(replica, (0.0, 0.0))[0]:
                self._loading[replica] = asyncio.create_task(self._load(replica))

    async def _load(self, replica: "Replica") -> None:
        assert replica.repository is not None
        deployment = self._deployment
        log.info("model %s is being loaded by %s", deployment.id, replica.server.url)
        self.loads += 1
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            await replica.repository.load()
            self._watcher.loaded(deployment.id, loop.time() - since, "loaded")
            self._retry.pop(replica, None)
            await deployment.look(replica, CALL_TIMEOUT)
        except UpstreamError as error:
            self.failed_loads += 1
            self._watcher.loaded(deployment.id, loop.time() - since, "failed")
            wait = min(2 * self._retry.get(replica, (0.0, FIRST_RETRY / 2))[1], LONGEST_RETRY)
            self._retry[replica] = loop.time() + wait, wait
            replica.reason = f"the model cannot be loaded: {error}"
            deployment.refresh()
        finally:
            del self._loading[replica]
            self._changed.set()

    async def _unload(self) -> None:
        """Who asks from now on waits until it is gone, and has it loaded again."""
        deployment = self._deployment
        replicas = [replica for replica in deployment.replicas if replica.binding is not None]
        for replica in replicas:
            replica.loadable = True
            replica.lose(f"the model was unloaded: nobody had asked for it in {self._idle:g} s")
        deployment.refresh()
        self.unloads += 1
        self._watcher.unloaded(deployment.id)
        try:
            await asyncio.gather(*(self._unload_from(replica) for replica in replicas))
        finally:
            self.unloading = None

    async def _unload_from(self, replica: "Replica") -> None:
        assert replica.repository is not None
        log.info("model %s is being unloaded by %s", self._deployment.id, replica.server.url)
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await replica.repository.unload()
        except (UpstreamError, TimeoutError) as error:
            log.warning("model %s cannot be unloaded by %s: %s", self._deployment.id, replica.server.url, error)
