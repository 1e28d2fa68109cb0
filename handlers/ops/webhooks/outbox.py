"""The background task of webhooks: it looks for what is to be told, and sends what is due.

Every process has one, as long as there is a webhook: a heartbeat starts it. They take turns through the store.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from handlers.door.gateway import Gateway
from handlers.ops.webhooks.events import describe
from handlers.ops.webhooks.sending import SECOND, Post, lease
from store import alerts
from store.records import Contended, StoreUnavailable
from store.webhooks import Due

MOST = 16
"""Deliveries that one process sends at a time."""
ALMOST = 0.9
"""Of the time between two looks, after which a process takes its turn: its own timer may be early."""
SHORTEST = 0.05
"""Seconds between two turns."""

log = logging.getLogger("conch")


class Outbox:
    """`current` is the gateway by which requests are served now: its settings, store and deployments."""

    def __init__(self, current: Callable[[], Gateway]) -> None:
        self._current = current
        self._rung = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._known: set[str] = set()  # the deployments of which the store knows
        self._post = Post()
        self._away = self._closed = False

    def ring(self) -> None:
        """Look now, and again as long as there is a webhook."""
        self._rung.set()
        self.begin()

    def begin(self) -> None:
        """Look, unless that is going on."""
        if not self._closed and (self._running is None or self._running.done()):
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Ends it, once what is being sent has been answered."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        if self._sending:
            await asyncio.wait(self._sending)
        await self._post.close()

    async def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._rung.wait()
            self._rung.clear()
            try:
                pause = await self._turn()
            except Exception:
                log.exception("webhooks: a turn failed")
                pause = float(self._current().config.webhooks.every)

    async def _turn(self) -> float | None:
        """Seconds until the next one; None where nobody listens and nothing is due."""
        gateway = self._current()
        settings, now = gateway.config.webhooks, gateway.clock.wall()
        look = self._look(gateway)
        try:
            turn = await gateway.store.run(alerts.turn(look, now))
        except Contended:
            return SHORTEST
        except StoreUnavailable as error:
            if not self._away:
                log.warning("webhooks wait for the store: %s", error)
            self._away = True
            return float(settings.every)
        self._away = False
        self._known = set(look.views)
        for due in turn.due:
            task = asyncio.get_running_loop().create_task(self._send(gateway, due))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        if turn.due_at is None:
            return float(settings.every) if turn.listening else None
        return max(SHORTEST, min(settings.every, (turn.due_at - now) / SECOND))

    def _look(self, gateway: Gateway) -> alerts.Look:
        settings = gateway.config.webhooks
        views = {
            id: (each.available, "" if each.available else each.reason)
            for id, each in gateway.pool.deployments.items()
            if each.checked.is_set()
        }
        return alerts.Look(
            process=gateway.store.teller.process,
            views=views,
            forget=self._known != views.keys(),
            every=int(settings.every * ALMOST * SECOND),
            low=int(settings.credits_low),
            soon=int(settings.key_expiring * SECOND),
            lease=lease(settings),
            most=MOST - len(self._sending),
            retention=int(settings.retention * SECOND),
            describe=describe(gateway.config),
        )

    async def _send(self, gateway: Gateway, due: Due) -> None:
        delivery = due.delivery
        try:
            sent = await self._post.send(gateway.store, due, gateway.config.webhooks, gateway.clock.wall)
        except StoreUnavailable as error:  # it is sent again after its lease
            log.warning("webhooks: what became of %s could not be written down: %s", delivery.id, error)
            return
        if sent is not None and sent.state == "dead":
            log.warning("webhooks: %s for %s is given up: %s", delivery.id, delivery.webhook, sent.error)

    def _sent(self, task: asyncio.Task[None]) -> None:
        full = len(self._sending) == MOST
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhooks: a delivery failed", exc_info=error)
        if full:
            self._rung.set()  # others may have had to wait for room
