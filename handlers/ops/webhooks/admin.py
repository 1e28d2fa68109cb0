"""/admin: webhooks and what was sent to them."""

from msgspec import UNSET, UnsetType

from handlers.door.lifetime import Request
from handlers.door.schemas.body import Body
from handlers.ops import values
from handlers.ops.accounts import told
from handlers.ops.admin import AS_USUAL, Cursor, Paging, Rotation, Text, named, page, who
from handlers.ops.cards import Page
from handlers.ops.webhooks.desk import DeliveryCard, Desk, NewWebhook, WebhookCard


class WebhookQuery(Paging):
    workspace: Text | None = None


class DeliveryQuery(Paging):
    """`state`: pending, delivered or dead."""

    webhook: Text | None = None
    state: Text | None = None


class WebhookRequest(Body):
    """`events`: all that there are for it, when they are left out."""

    url: Cursor
    events: list[Text] | None = None
    workspace: Text | None = None
    description: str = ""


class WebhookChange(Body):
    url: Cursor | UnsetType = UNSET
    events: list[Text] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


async def list_webhooks(request: Request, query: WebhookQuery) -> Page[WebhookCard]:
    """Who is told of what, without their secrets, oldest first."""
    found = await _desk(request).webhooks(query.workspace, query.after or "", query.limit + 1)
    return page(found, query, lambda card: card.id)


async def create_webhook(request: Request, body: WebhookRequest) -> NewWebhook:
    """A new webhook: the only time that its secret is shown. Raises 400."""
    made = await _desk(request).create(body.url, body.events, body.workspace, body.description)
    request.gateway.ring()
    return made


async def show_webhook(request: Request) -> WebhookCard:
    """A webhook without its secret. Raises 404."""
    return await _desk(request).webhook(named(request, "id"))


async def set_webhook(request: Request, body: WebhookChange) -> WebhookCard:
    """Changes the fields that are there. What is pending of one that is disabled is given up. Raises 400, 404."""
    fields = {"url": body.url, "wanted": body.events, "description": body.description, "enabled": body.enabled}
    changed = await _desk(request).change(named(request, "id"), **fields)  # type: ignore[arg-type]
    request.gateway.ring()
    return changed


async def delete_webhook(request: Request) -> WebhookCard:
    """Ends it, with what was to be sent. Raises 404."""
    return await _desk(request).delete(named(request, "id"))


async def rotate_webhook(request: Request, body: Rotation = AS_USUAL) -> NewWebhook:
    """Another secret, which is shown once; for a while, what is sent is signed with both. Raises 400, 404."""
    with told("grace"):
        grace = values.span(body.grace)
    return await _desk(request).rotate(named(request, "id"), grace)


async def test_webhook(request: Request) -> DeliveryCard:
    """Sends a webhook.test now, once, and says what was answered. Raises 404, 409."""
    return await _desk(request).test(named(request, "id"))


async def list_deliveries(request: Request, query: DeliveryQuery) -> Page[DeliveryCard]:
    """What was sent, is to be sent, or was given up, newest first."""
    found = await _desk(request).deliveries(query.webhook, query.state, query.after, query.limit + 1)
    return page(found, query, lambda card: card.id)


async def resend_delivery(request: Request) -> DeliveryCard:
    """Sends a delivery that has ended once more. Raises 404, 409."""
    sent = await _desk(request).resend(named(request, "id"))
    request.gateway.ring()
    return sent


def _desk(request: Request) -> Desk:
    gateway = request.gateway
    return Desk(gateway.store, gateway.config, who(request), gateway.clock.wall)
