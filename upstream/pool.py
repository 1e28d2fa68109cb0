"""A client for every Triton server, the deployments on them, and the watch that keeps verification true."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import uniform
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from upstream.deployment import Deployment
from upstream.http import Client
from upstream.names import Names, Resolve, is_name, resolve
from upstream.queue import Watcher
from upstream.replica import Replica, Server, Settings

if TYPE_CHECKING:
    from upstream.grpc import GrpcClient

log = logging.getLogger("conch")

CHECK_TIMEOUT = 5.0
SPREAD = 0.1
"""By how much of its period a check comes earlier or later, so that those of many models do not come at once."""


class UpstreamSettings(Protocol):
    """The part of an [upstreams.NAME] table that the pool reads."""

    @property
    def urls(self) -> list[str]: ...
    @property
    def grpc(self) -> list[str]: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def check_every(self) -> float: ...


class ModelSettings(Settings, Protocol):
    """The part of a [[models]] entry that the pool reads."""

    @property
    def upstream(self) -> str: ...
    @property
    def aliases(self) -> list[str]: ...


class Fleet:
    """The servers of one upstream, by its urls and then by their addresses, and the deployments on them."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        self.deployments: list[Deployment] = []
        self._grpc: list[str | None] = [*settings.grpc] or [None] * len(settings.urls)
        self._by_url = {url: [self._server(url, None)] for url in settings.urls}

    @property
    def servers(self) -> list[Server]:
        return [server for servers in self._by_url.values() for server in servers]

    @property
    def names(self) -> dict[str, list[str]]:
        """The names that are to be resolved, and the urls that have them."""
        names: dict[str, list[str]] = {}
        for url in filter(is_name, self._by_url):
            names.setdefault(urlsplit(url).hostname or "", []).append(url)
        return names

    def move(self, url: str, endpoints: Sequence[str | None]) -> tuple[list[Server], list[Server]]:
        """Those servers that `url` has from now on and had not, and those that it had."""
        before = {server.http.at: server for server in self._by_url[url]}
        now = {at: before.pop(at, None) for at in endpoints}
        come = {at: self._server(url, at) for at, server in now.items() if server is None}
        self._by_url[url] = [server or come[at] for at, server in now.items()]
        return list(come.values()), list(before.values())

    def _server(self, url: str, at: str | None) -> Server:
        timeout = self.settings.connect_timeout
        http = Client(url, connect_timeout=timeout, at=at)
        address = self._grpc[self.settings.urls.index(url)]
        # gRPC has the same addresses if it has the same name; another name it resolves itself.
        same = address is not None and urlsplit(f"//{address.rpartition('//')[2]}").hostname == urlsplit(url).hostname
        grpc = _grpc(address, timeout, at if same else None) if address else None
        return Server(url if at is None else f"{url} at {at}", http, grpc)


class Pool:
    """Every deployment, by id and alias. Made inside the running loop; `close` ends the watch and the connections.

    `watcher` is told of what requests wait for; `resolve` finds the addresses of a name.
    """

    def __init__(
        self,
        upstreams: Mapping[str, UpstreamSettings],
        models: Sequence[ModelSettings],
        watcher: Watcher | None = None,
        *,
        resolve: Resolve = resolve,
    ) -> None:
        self.fleets = {name: Fleet(upstream) for name, upstream in upstreams.items()}
        self.watcher = watcher or Watcher()
        self.deployments = {
            model.id: Deployment(model, self.fleets[model.upstream].servers, self.watcher) for model in models
        }
        self.by_name = {name: self.deployments[model.id] for model in models for name in (model.id, *model.aliases)}
        for model in models:
            self.fleets[model.upstream].deployments.append(self.deployments[model.id])
        self._names = Names(resolve)
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks: dict[Replica, asyncio.Task[None]] = {}

    def watch(self) -> None:
        """Begin to verify every deployment, and to look again after each `check_every`."""
        for fleet in self.fleets.values():
            self._start(self._follow(fleet))

    async def check(self) -> None:
        """Resolve every name, and verify every deployment, once."""
        await asyncio.gather(*(self._resolve(fleet) for fleet in self.fleets.values()))
        await asyncio.gather(*(deployment.check(CHECK_TIMEOUT) for deployment in self.deployments.values()))

    async def settled(self, keep: Callable[[Deployment], bool] = lambda deployment: True) -> list[Deployment]:
        """Those that can be asked, among those that `keep` wants, once each has been looked at."""
        wanted = [deployment for deployment in self.deployments.values() if keep(deployment)]
        for deployment in wanted:
            await deployment.checked.wait()
        return [deployment for deployment in wanted if deployment.available]

    async def close(self) -> None:
        """End the watch and close every connection."""
        tasks = [*self._tasks, *self._looks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for deployment in self.deployments.values():
            if deployment.loader is not None:
                await deployment.loader.close()
        for fleet in self.fleets.values():
            for server in fleet.servers:
                await _close(server)

    async def _follow(self, fleet: Fleet) -> None:
        """Verify what is on it; then follow its names."""
        every = fleet.settings.check_every
        await self._resolve(fleet)
        for deployment in fleet.deployments:
            deployment.told = _Tale(deployment).tell
            self._start(self._begin(deployment, every))
        while fleet.names:
            await asyncio.sleep(_about(every))
            await self._resolve(fleet)

    async def _begin(self, deployment: Deployment, every: float) -> None:
        await deployment.check(CHECK_TIMEOUT)
        for replica in deployment.replicas:
            if replica not in self._looks:
                self._looks[replica] = asyncio.create_task(self._look(deployment, replica, every))
        if deployment.loader is not None:
            await deployment.loader.mind()

    async def _look(self, deployment: Deployment, replica: Replica, every: float, *, new: bool = False) -> None:
        """Check it whenever that is due."""
        while True:
            if not new:
                await replica.rest(_about(every))
            new = False
            await deployment.look(replica, CHECK_TIMEOUT)

    async def _resolve(self, fleet: Fleet) -> None:
        for name, urls in fleet.names.items():
            endpoints = await self._names.look(name)
            if endpoints is None:
                continue
            for url in urls:
                self._move(fleet, *fleet.move(url, endpoints))

    def _move(self, fleet: Fleet, come: list[Server], gone: list[Server]) -> None:
        """Requests go to those that have come once they are checked, and no more to those that are gone."""
        left: list[Replica] = []
        for deployment in fleet.deployments:
            for server in come:
                replica = deployment.add(server)
                if deployment.checked.is_set():
                    look = self._look(deployment, replica, fleet.settings.check_every, new=True)
                    self._looks[replica] = asyncio.create_task(look)
            for replica in [each for each in deployment.replicas if each.server in gone]:
                deployment.remove(replica)
                left.append(replica)
                if replica in self._looks:
                    self._looks.pop(replica).cancel()
        for server in gone:
            self._start(_retire(server, [replica for replica in left if replica.server is server]))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Tale:
    """Tells the log what has changed about a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._said: tuple[str, dict[str, str]] | None = None

    def tell(self) -> None:
        """Once for each change."""
        deployment = self._deployment
        servers = {replica.server.url: replica.reason for replica in deployment.replicas}
        if (deployment.reason, servers) == self._said:
            return
        before, known = self._said or ("not checked yet", {})
        self._said = deployment.reason, servers
        if deployment.reason:
            if deployment.available:
                log.info("model %s will be loaded for who asks: %s", deployment.id, deployment.reason)
            else:
                log.warning("model %s is not verified: %s", deployment.id, deployment.reason)
            return
        if before:
            log.info("model %s is verified", deployment.id)
        for server, reason in servers.items():
            if reason != known.get(server, ""):
                if reason:
                    log.warning("model %s lacks the server %s: %s", deployment.id, server, reason)
                elif not before:
                    log.info("model %s has the server %s again", deployment.id, server)


def _grpc(address: str, timeout: float, at: str | None) -> "GrpcClient":
    """Imported where an upstream has one."""
    from upstream.grpc import GrpcClient

    return GrpcClient(address, connect_timeout=timeout, at=at)


def _about(seconds: float) -> float:
    return seconds * uniform(1 - SPREAD, 1 + SPREAD)


async def _retire(server: Server, replicas: Sequence[Replica]) -> None:
    """Close its connections when what is under way there has ended."""
    try:
        while any(replica.outstanding for replica in replicas):  # noqa: ASYNC110 - nobody waits for it
            await asyncio.sleep(1.0)
    finally:
        await _close(server)


async def _close(server: Server) -> None:
    server.http.close()
    if server.grpc is not None:
        await server.grpc.close()
