"""A client for every Triton server, the deployments on them, and the watch that keeps verification true."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from upstream.deployment import Deployment
from upstream.http import Client
from upstream.replica import Server, Settings

log = logging.getLogger("conch")

CHECK_TIMEOUT = 5.0


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


class Pool:
    """Every deployment, by id and alias. Made inside the running loop; `close` ends the watch and the connections."""

    def __init__(self, upstreams: Mapping[str, UpstreamSettings], models: Sequence[ModelSettings]) -> None:
        self.servers = {name: _servers(upstream) for name, upstream in upstreams.items()}
        self.deployments = {model.id: Deployment(model, self.servers[model.upstream]) for model in models}
        self.by_name = {name: self.deployments[model.id] for model in models for name in (model.id, *model.aliases)}
        self._every = {model.id: upstreams[model.upstream].check_every for model in models}
        self._watch: list[asyncio.Task[None]] = []

    def watch(self) -> None:
        """Begin to verify every deployment, and to look again after each `check_every`."""
        loop = asyncio.get_running_loop()
        self._watch = [loop.create_task(self._follow(deployment)) for deployment in self.deployments.values()]

    async def _follow(self, deployment: Deployment) -> None:
        said: list[str] = []
        while True:
            await deployment.check(CHECK_TIMEOUT)
            reasons = [deployment.reason, *(replica.reason for replica in deployment.replicas)]
            if reasons != said:
                said = reasons
                if deployment.reason:
                    log.warning("model %s is not verified: %s", deployment.id, deployment.reason)
                else:
                    log.info("model %s is verified", deployment.id)
                    for replica in deployment.replicas:
                        if replica.reason:
                            log.warning("model %s lacks a server: %s", deployment.id, replica.reason)
            await asyncio.sleep(self._every[deployment.id])

    async def settled(self, keep: Callable[[Deployment], bool] = lambda deployment: True) -> list[Deployment]:
        """The verified ones among those that `keep` wants, once each has been looked at."""
        wanted = [deployment for deployment in self.deployments.values() if keep(deployment)]
        for deployment in wanted:
            await deployment.checked.wait()
        return [deployment for deployment in wanted if deployment.verified]

    async def close(self) -> None:
        """End the watch and close every connection."""
        for task in self._watch:
            task.cancel()
        for task in self._watch:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for servers in self.servers.values():
            for server in servers:
                server.http.close()
                if server.grpc is not None:
                    await server.grpc.close()


def _servers(upstream: UpstreamSettings) -> list[Server]:
    timeout = upstream.connect_timeout
    clients = [Client(url, connect_timeout=timeout) for url in upstream.urls]
    if not upstream.grpc:
        return [Server(http, None) for http in clients]
    from upstream.grpc import GrpcClient

    grpcs = [GrpcClient(address, connect_timeout=timeout) for address in upstream.grpc]
    return [Server(http, grpc) for http, grpc in zip(clients, grpcs, strict=True)]
