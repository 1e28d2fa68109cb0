"""Every upstream and every deployment by name; and the same for other settings, of which what is unchanged goes on."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import replace

from upstream.deployment import Deployment
from upstream.fleet import CHECK_TIMEOUT, Fleet, UpstreamSettings
from upstream.names import Resolve, resolve
from upstream.queue import Watcher
from upstream.replica import Settings

PLAIN = ("aliases", "workspaces", "owned_by")
"""What of a [[models]] entry no deployment reads; of its price, only whether it has one."""


class ModelSettings(Settings, Protocol):
    """The part of a [[models]] entry that the pool reads."""

    @property
    def upstream(self) -> str: ...
    @property
    def aliases(self) -> list[str]: ...


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
        kept: "_Kept | None" = None,
    ) -> None:
        self.watcher, self._resolve = watcher or Watcher(), resolve
        self._kept = kept or _Kept()
        self.fleets = {
            name: self._kept.fleets.get(name) or Fleet(upstream, resolve) for name, upstream in upstreams.items()
        }
        self.deployments = {model.id: self._deployment(model) for model in models}
        self.by_name = {name: self.deployments[model.id] for model in models for name in (model.id, *model.aliases)}

    def watch(self) -> None:
        """Begin to verify every deployment, and to look again after each `check_every`."""
        for name, fleet in self.fleets.items():
            if name not in self._kept.fleets:
                fleet.watch()

    async def check(self) -> None:
        """Resolve every name, and verify every deployment, once."""
        await asyncio.gather(*(fleet.resolve() for fleet in self.fleets.values()))
        await asyncio.gather(*(deployment.check(CHECK_TIMEOUT) for deployment in self.deployments.values()))

    async def settled(self, keep: Callable[[Deployment], bool] = lambda deployment: True) -> list[Deployment]:
        """Those that can be asked, among those that `keep` wants, once each has been looked at."""
        wanted = [deployment for deployment in self.deployments.values() if keep(deployment)]
        for deployment in wanted:
            await deployment.checked.wait()
        return [deployment for deployment in wanted if deployment.available]

    async def has_one(self) -> bool:
        """Whether any can be asked: as soon as one can, else once each has been looked at."""
        looks = {asyncio.ensure_future(each.checked.wait()) for each in self.deployments.values()}
        try:
            while not (found := any(each.available for each in self.deployments.values())) and looks:
                _, looks = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
            return found
        finally:
            for look in looks:
                look.cancel()

    async def successor(self, upstreams: Mapping[str, UpstreamSettings], models: Sequence[ModelSettings]) -> "Pool":
        """The pool of other settings, watched; until its `take_over` nothing of this one is another.

        An upstream of the same settings is the same one. So is each of its deployments whose own are the same: what
        waits in its queue, the places that are taken, what is known of its servers. Its files are read again.
        """
        kept = _Kept()
        for name, upstream in upstreams.items():
            if name in self.fleets and self.fleets[name].settings == upstream:
                kept.fleets[name] = self.fleets[name]
        same = [model for model in models if model.upstream in kept.fleets and self._has(model)]
        read = await asyncio.gather(*(self.deployments[model.id].read(model) for model in same))
        for model, prepared in zip(same, read, strict=True):
            if prepared is not None:
                kept.deployments[model.id] = self.deployments[model.id], prepared
        pool = Pool(upstreams, models, self.watcher, resolve=self._resolve, kept=kept)
        pool.watch()
        return pool

    def take_over(self, models: Sequence[ModelSettings]) -> None:
        """From now on what was kept goes by these settings, and by what was read of its files."""
        for model in models:
            if model.id in self._kept.deployments:
                deployment, prepared = self._kept.deployments[model.id]
                deployment.renew(model, prepared)
        self._kept = _Kept()

    async def close(self, *others: "Pool") -> None:
        """End the watch and close every connection, but of what the `others` have, too."""
        fleets = {id(fleet) for pool in others for fleet in pool.fleets.values()}
        deployments = {id(each) for pool in others for each in pool.deployments.values()}
        for fleet in self.fleets.values():
            if id(fleet) not in fleets:
                await fleet.close()
        for deployment in self.deployments.values():
            for fleet in self.fleets.values():
                if id(deployment) not in deployments and deployment in fleet.deployments:
                    await fleet.remove(deployment)

    def _deployment(self, model: ModelSettings) -> Deployment:
        if model.id in self._kept.deployments:
            return self._kept.deployments[model.id][0]
        fleet = self.fleets[model.upstream]
        deployment = Deployment(model, fleet.servers, self.watcher)
        fleet.add(deployment)
        return deployment

    def _has(self, model: Any) -> bool:
        """Whether a deployment here is what other settings ask for."""
        deployment = self.deployments.get(model.id)
        if deployment is None or (deployment.settings.price is None) != (model.price is None):
            return False
        own: Any = deployment.settings
        return bool(own == replace(model, price=own.price, **{name: getattr(own, name) for name in PLAIN}))


class _Kept:
    """What of one pool goes on in the next: upstreams by name, deployments by id with what was read of their files."""

    def __init__(self) -> None:
        self.fleets: dict[str, Fleet] = {}
        self.deployments: dict[str, tuple[Deployment, list[Any]]] = {}
