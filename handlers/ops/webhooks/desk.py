"""What the operator can do with webhooks, and the rules of it: for the command line and /admin.

What cannot be done raises an ApiError that names the field.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import ClassVar

import msgspec
from msgspec import UNSET, UnsetType

from config import Config
from handlers.door.errors import InvalidRequest
from handlers.ops.accounts import ALL, LONGEST_NOTE, check_text, invalid, named
from handlers.ops.webhooks import events
from handlers.ops.webhooks.sending import Post, lease
from store import Store, records, webhooks
from store.script import identify
from store.webhooks import Delivery, Webhook
from upstream.fetch import FetchError, check_target

STATES = ("pending", "delivered", "dead")


class WebhookCard(msgspec.Struct):
    """Who is told of `events`: those of a workspace or, without one, of all and of the gateway itself.

    `disabled_at`, and the `reason`, where nothing is sent; until `old_secret_until` the secret before is good too.
    """

    id: str
    workspace: str | None
    url: str
    events: list[str]
    description: str
    created_at: int
    disabled_at: int | None
    reason: str | None
    old_secret_until: int | None


class NewWebhook(WebhookCard):
    """A webhook and its secret, which is shown here and never again."""

    secret: ClassVar = True  # is shown once: it cannot be kept for who asks again

    signing_secret: str


class DeliveryCard(msgspec.Struct):
    """An event on its way. `state`: pending (tried again at `next_at`), delivered, or dead: given up.

    `status` is that of the last answer, if there was one, and `error` why that was no success.
    """

    id: str
    webhook: str
    event: str
    type: str
    state: str
    created_at: int
    attempts: int
    attempted_at: int | None
    next_at: int | None
    status: int | None
    error: str | None


class Desk:
    """The webhooks of a store as the operator `by` sees them; `clock` gives µs. All methods raise StoreUnavailable."""

    def __init__(self, store: Store, config: Config, by: str, clock: Callable[[], int]) -> None:
        self._store, self._config, self._by, self._clock = store, config, by, clock

    async def webhooks(self, workspace: str | None = None, after: str = "", limit: int = ALL) -> list[WebhookCard]:
        """Of one workspace or of all, oldest first."""
        return [_card(each) for each in await self._store.run(webhooks.listed(workspace, after=after, limit=limit))]

    async def webhook(self, id: str) -> WebhookCard:
        """Raises 404."""
        with named("id"):
            return _card(await self._store.run(webhooks.get(id)))

    async def create(
        self, url: str, wanted: Sequence[str] | None = None, workspace: str | None = None, description: str = ""
    ) -> NewWebhook:
        """For these events, or all that there are for it. Raises 400."""
        self._check(url, description)
        types = self._types(wanted, workspace)
        secret = webhooks.mint()
        script = webhooks.create(secret, workspace, url, types, description, by=self._by, now=self._clock())
        try:
            return _new(await self._store.run(script), secret)
        except records.NotFound as error:
            raise InvalidRequest(str(error), param="workspace", code="workspace_not_found") from error

    async def change(
        self,
        id: str,
        *,
        url: str | UnsetType = UNSET,
        wanted: Sequence[str] | UnsetType = UNSET,
        description: str | UnsetType = UNSET,
        enabled: bool | UnsetType = UNSET,
    ) -> WebhookCard:
        """Changes what is given. Raises 400, 404."""
        if all(each is UNSET for each in (url, wanted, description, enabled)):
            raise InvalidRequest(
                "There is nothing to change: give a URL, events, a description, or whether it is enabled.",
                code="nothing_to_change",
            )
        self._check(url, description)
        with named("id"):
            found = await self._store.run(webhooks.get(id))
            types = wanted if wanted is UNSET else self._types(wanted, found.workspace)
            changed = webhooks.change(
                id, url=url, events=types, description=description, enabled=enabled, by=self._by, now=self._clock()
            )
            return _card(await self._store.run(changed))

    async def rotate(self, id: str, grace: timedelta) -> NewWebhook:
        """Another secret; for `grace` what is sent is signed with both. Raises 404."""
        secret, microseconds = webhooks.mint(), grace // timedelta(microseconds=1)
        with named("id"):
            rotated = webhooks.rotate(id, secret, grace=microseconds, by=self._by, now=self._clock())
            return _new(await self._store.run(rotated), secret)

    async def delete(self, id: str) -> WebhookCard:
        """With what was to be sent. Raises 404."""
        with named("id"):
            return _card(await self._store.run(webhooks.delete(id, by=self._by, now=self._clock())))

    async def test(self, id: str) -> DeliveryCard:
        """Sends an event now, once, and says what was answered. Raises 404, and 409 where it is disabled."""
        now, settings = self._clock(), self._config.webhooks
        event = identify("evt", now)
        type, body = events.written(events.TestEvent(event, now // events.SECOND, data=events.Test(id)))
        with named("id"):
            due = await self._store.run(webhooks.trial(id, type, event, body, lease=lease(settings), now=now))
        post = Post()
        try:
            sent = await post.send(self._store, due, settings, self._clock)
        finally:
            await post.close()
        return _delivery(sent or due.delivery)

    async def deliveries(
        self, webhook: str | None = None, state: str | None = None, before: str | None = None, limit: int = ALL
    ) -> list[DeliveryCard]:
        """Newest first, from the first one older than the id `before`. Raises 400."""
        if state is not None and state not in STATES:
            raise invalid("state", f"it is one of {', '.join(STATES)}")
        found = await self._store.run(webhooks.deliveries(webhook, state, before=before, limit=limit))
        return [_delivery(each) for each in found]

    async def resend(self, id: str) -> DeliveryCard:
        """Has a running gateway send it again. Raises 404, and 409 where it is pending, or its webhook disabled."""
        with named("id"):
            return _delivery(await self._store.run(webhooks.again(id, by=self._by, now=self._clock())))

    def _check(self, url: str | UnsetType, description: str | UnsetType) -> None:
        if url is not UNSET:
            try:
                check_target(url, private=self._config.webhooks.private)
            except FetchError as error:
                raise InvalidRequest(f"Invalid 'url': {error}", param="url", code="invalid_url") from error
        if description is not UNSET:
            check_text("description", description, LONGEST_NOTE)

    def _types(self, wanted: Sequence[str] | None, workspace: str | None) -> Sequence[str]:
        there = events.EVERY if workspace is None else events.OF_WORKSPACE
        if wanted is None:
            return there
        if not wanted:
            raise invalid("events", f"it is to name some of {', '.join(there)}")
        for type in wanted:
            if type in events.EVERY and type not in there:
                raise invalid("events", f"{type!r} is of the gateway itself: leave the workspace out")
            if type not in there:
                raise invalid("events", f"{type[:100]!r} is none of {', '.join(there)}")
        return wanted


def _card(webhook: Webhook) -> WebhookCard:
    w = webhook
    return WebhookCard(
        w.id, w.workspace, w.url, w.events, w.description, w.created_at, w.disabled_at, w.reason, w.old_until
    )


def _new(webhook: Webhook, secret: str) -> NewWebhook:
    return NewWebhook(**msgspec.structs.asdict(_card(webhook)), signing_secret=secret)


def _delivery(delivery: Delivery) -> DeliveryCard:
    d = delivery
    next_at = d.due_at if d.state == "pending" else None
    return DeliveryCard(
        d.id, d.webhook, d.event, d.type, d.state, d.created_at, d.attempts, d.attempted_at, next_at, d.status, d.error
    )
