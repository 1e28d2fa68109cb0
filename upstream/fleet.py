"""One upstream: its servers, the deployments on them, and the watch that keeps verification true."""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from random import uniform
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from upstream.deployment import Deployment
from upstream.http import Client
from upstream.names import Names, Resolve, is_name
from upstream.replica import Replica, Server

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


class Fleet:
    """The servers of one upstream, by its urls and then by their addresses, and the deployments on them.

    Belongs to the running loop once it is watched; `close` ends that and the connections.
    """

    def __init__(self, settings: UpstreamSettings, resolve: Resolve) -> None:
        self.settings = settings
        self.deployments: list[Deployment] = []
        self._grpc: list[str | None] = [*settings.grpc] or [None] * len(settings.urls)
        self._by_url = {url: [self._server(url, None)] for url in settings.urls}
        self._names = Names(resolve)
        self._resolved = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun: dict[Deployment, asyncio.Task[None]] = {}
        self._looks: dict[Replica, asyncio.Task[None]] = {}

    @property
    def servers(self) -> list[Server]:
        return [server for servers in self._by_url.values() for server in servers]

    def add(self, deployment: Deployment) -> None:
        """Have it verified, too, once there is a watch."""
        self.deployments.append(deployment)
        if self._resolved:
            self._begin(deployment)

    async def remove(self, deployment: Deployment) -> None:
        """Verify it no more. Nothing of it is under way."""
        self.deployments.remove(deployment)
        looks = [self._looks.pop(replica, None) for replica in deployment.replicas]
        await _end([self._begun.pop(deployment, None), *looks])
        if deployment.loader is not None:
            await deployment.loader.close()

    def watch(self) -> None:
        """Begin to verify what is on it, and to look again after each `check_every`; then follow its names."""
        self._start(self._follow())

    async def resolve(self) -> None:
        """Look its names up, and move where that says."""
        names: dict[str, list[str]] = {}
        for url in filter(is_name, self._by_url):
            names.setdefault(urlsplit(url).hostname or "", []).append(url)
        for name, urls in names.items():
            endpoints = await self._names.look(name)
            if endpoints is not None:
                for url in urls:
                    self._move(url, endpoints)

    async def close(self) -> None:
        """End the watch and close every connection."""
        await _end(list(self._tasks))
        for deployment in list(self.deployments):
            await self.remove(deployment)
        for server in self.servers:
            await _close(server)

    async def _follow(self) -> None:
        await self.resolve()
        self._resolved = True
        for deployment in self.deployments:
            self._begin(deployment)
        while any(map(is_name, self._by_url)):
            await asyncio.sleep(_about(self.settings.check_every))
            await self.resolve()

    def _begin(self, deployment: Deployment) -> None:
        deployment.told = _Tale(deployment).tell
        self._begun[deployment] = asyncio.create_task(self._verify(deployment))

    async def _verify(self, deployment: Deployment) -> None:
        await deployment.check(CHECK_TIMEOUT)
        for replica in deployment.replicas:
            if replica not in self._looks:
                self._looks[replica] = asyncio.create_task(self._look(deployment, replica))
        if deployment.loader is not None:
            await deployment.loader.mind()

    async def _look(self, deployment: Deployment, replica: Replica, *, new: bool = False) -> None:
        """Check it whenever that is due."""
        while True:
            if not new:
                await replica.rest(_about(self.settings.check_every))
            new = False
            await deployment.look(replica, CHECK_TIMEOUT)

    def _move(self, url: str, endpoints: Sequence[str | None]) -> None:
        """Requests go to those that have come once they are checked, and no more to those that are gone."""
        before = {server.http.at: server for server in self._by_url[url]}
        now = {at: before.pop(at, None) for at in endpoints}
        come = {at: self._server(url, at) for at, server in now.items() if server is None}
        self._by_url[url] = [server or come[at] for at, server in now.items()]
        gone, left = list(before.values()), list[Replica]()
        for deployment in self.deployments:
            for server in come.values():
                replica = deployment.add(server)
                if deployment.checked.is_set():
                    self._looks[replica] = asyncio.create_task(self._look(deployment, replica, new=True))
            for replica in [each for each in deployment.replicas if each.server in gone]:
                deployment.remove(replica)
                left.append(replica)
                if replica in self._looks:
                    self._looks.pop(replica).cancel()
        for server in gone:
            self._start(_retire(server, [replica for replica in left if replica.server is server]))

    def _server(self, url: str, at: str | None) -> Server:
        timeout = self.settings.connect_timeout
        http = Client(url, connect_timeout=timeout, at=at)
        address = self._grpc[self.settings.urls.index(url)]
        # gRPC has the same addresses if it has the same name; another name it resolves itself.
        same = address is not None and urlsplit(f"//{address.rpartition('//')[2]}").hostname == urlsplit(url).hostname
        grpc = _grpc(address, timeout, at if same else None) if address else None
        return Server(url if at is None else f"{url} at {at}", http, grpc)

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


async def _end(tasks: Sequence[asyncio.Task[None] | None]) -> None:
    given = [task for task in tasks if task is not None]
    for task in given:
        task.cancel()
    await asyncio.gather(*given, return_exceptions=True)
