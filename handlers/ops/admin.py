"""/admin: workspaces, keys, plans, credits, usage, audit and models as JSON, for who knows CONCH_ADMIN_TOKEN."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from config import MOST_PER_MINUTE
from handlers.door.errors import InvalidRequest, NotFound, Unauthenticated
from handlers.door.lifetime import JSON, Request
from handlers.door.schemas.body import Body
from handlers.door.wire import Gate
from handlers.ops import values
from handlers.ops.accounts import Accounts, groups, plans, told
from handlers.ops.cards import (
    AccountCard,
    EventCard,
    GrantCard,
    KeyCard,
    NewKey,
    Page,
    PlanCard,
    RequestCard,
    UsageCard,
    WorkspaceCard,
    latency_card,
    request_card,
    usage_card,
)
from handlers.ops.check import Fit, fit
from handlers.ops.deployments import DeploymentCard, deployment_card
from store.reports import Window
from upstream.deployment import Deployment

T = TypeVar("T")

HEADERS = [JSON, (b"cache-control", b"no-store")]
_BEARER = re.compile(rb"(?i:bearer) +(.+)")

PerMinute = Annotated[int, msgspec.Meta(ge=1, le=MOST_PER_MINUTE)]
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$", max_length=200)]  # PostgreSQL takes no NUL
Cursor = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$", max_length=2000)]
Usd = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?$"})]  # values.dollars
WorkspaceName = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^{values.NAME.pattern}$"})]
Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Paging(Body):
    """`limit` entries of a list, from the one past the cursor `after`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    after: Cursor | None = None


class KeyQuery(Paging):
    workspace: Text | None = None


class UsageQuery(Paging):
    """Which requests; `since` and `until` as on the command line."""

    workspace: Text | None = None
    key: Text | None = None
    model: Text | None = None
    since: Text | None = None
    until: Text | None = None

    def window(self) -> Window:
        """Raises 400."""
        moments: list[int | None] = []
        for name, text in (("since", self.since), ("until", self.until)):
            with told(name):
                moments.append(None if text is None else values.moment(text))
        return Window(self.workspace, self.key, self.model, *moments)


class SumQuery(UsageQuery):
    """`by`: the names of what to sum up by, with commas between them; `latency`: tell how long they took, too."""

    by: str = "workspace,model"
    latency: bool = False


class NewWorkspace(Body):
    name: WorkspaceName
    plan: str
    ceiling: PerMinute | None = None
    spend_limit_usd: Usd | None = None


class WorkspaceChange(Body):
    plan: str | UnsetType = UNSET
    ceiling: PerMinute | UnsetType | None = UNSET
    spend_limit_usd: Usd | UnsetType | None = UNSET
    credits_low_usd: Usd | UnsetType | None = UNSET


class Grant(Body):
    amount_usd: Usd
    note: str = ""


class KeyRequest(Body):
    """`expires`: a span or a date, as on the command line."""

    workspace: Text
    name: str = ""
    pipeline: str | None = None
    limit: PerMinute | None = None
    models: list[str] | None = None
    expires: str | None = None


class Rotation(Body):
    """For how long the old key works on."""

    grace: str = "24h"


def gatekeeper(*tokens: str, what: str = "admin") -> Gate:
    """Who sends one of `tokens` may pass. The hashes are compared, in constant time. Raises 401, before a body is read.

    `what` they are tokens of is said to who is refused.
    """
    expected = [hashlib.sha256(token.encode(errors="surrogateescape")).digest() for token in tokens]

    challenge = ((b"www-authenticate", b'Bearer realm="%b"' % what.encode()),)

    async def admit(request: Request) -> None:
        header = request.header(b"authorization")
        match = _BEARER.fullmatch(header or b"")
        sent = hashlib.sha256(match[1] if match else b"").digest()
        if True not in [hmac.compare_digest(sent, each) for each in expected]:
            fault = f"No {what} token was sent" if header is None else f"The {what} token is not valid"
            raise Unauthenticated(
                f"{fault}. Send it as 'Authorization: Bearer …'.", code=f"invalid_{what}_token", headers=challenge
            )

    return admit


async def list_workspaces(request: Request, query: Paging) -> Page[WorkspaceCard]:
    """The tenants, by name."""
    found = await _accounts(request).workspaces(query.after or "", query.limit + 1)
    return page(found, query, lambda card: card.name)


async def create_workspace(request: Request, body: NewWorkspace) -> WorkspaceCard:
    """A new tenant on a plan. Raises 400, 409."""
    limit = _dollars("spend_limit_usd", body.spend_limit_usd)
    accounts = _accounts(request)
    return await accounts.create_workspace(body.name, body.plan, ceiling=body.ceiling, spend_limit=limit)


async def show_workspace(request: Request) -> WorkspaceCard:
    """A tenant, by its name. Raises 404."""
    return await _accounts(request).workspace(named(request, "name"))


async def set_workspace(request: Request, body: WorkspaceChange) -> WorkspaceCard:
    """Changes the fields that are there; null takes a limit away. Raises 400, 404."""
    limit, low = (
        UNSET if text is UNSET else _dollars(field, text)
        for field, text in (("spend_limit_usd", body.spend_limit_usd), ("credits_low_usd", body.credits_low_usd))
    )
    name, accounts = named(request, "name"), _accounts(request)
    return await accounts.set_workspace(name, plan=body.plan, ceiling=body.ceiling, spend_limit=limit, credits_low=low)


async def grant_credits(request: Request, body: Grant) -> AccountCard:
    """Adds to the credits of a workspace. Raises 400, 404."""
    with told("amount_usd"):
        amount = values.dollars(body.amount_usd)
    claim = request.bill.claim if request.bill is not None else None  # kill -9 may come before its answer is kept
    return await _accounts(request).grant(named(request, "name"), amount, body.note, claim.hex() if claim else None)


async def show_credits(request: Request) -> AccountCard:
    """What a workspace has left, and has spent this month. Raises 404."""
    return await _accounts(request).account(named(request, "name"))


async def list_grants(request: Request, query: Paging) -> Page[GrantCard]:
    """What was added, newest first. Raises 404."""
    found = await _accounts(request).grants(named(request, "name"), query.after, query.limit + 1)
    return page(found, query, lambda card: card.id)


async def list_keys(request: Request, query: KeyQuery) -> Page[KeyCard]:
    """The keys without their secrets, oldest first."""
    found = await _accounts(request).keys(query.workspace, query.after or "", query.limit + 1)
    return page(found, query, lambda card: card.id)


async def create_key(request: Request, body: KeyRequest) -> NewKey:
    """A new key: the only time that its secret is shown. Raises 400, 403, 404."""
    with told("expires"):
        expires_at = None if body.expires is None else values.expiry(body.expires)
    return await _accounts(request).create_key(
        body.workspace,
        name=body.name,
        pipeline=body.pipeline,
        limit=body.limit,
        models=body.models,
        expires_at=expires_at,
    )


async def show_key(request: Request) -> KeyCard:
    """A key without its secret. Raises 404."""
    return await _accounts(request).key(named(request, "id"))


AS_USUAL = Rotation()


async def rotate_key(request: Request, body: Rotation = AS_USUAL) -> NewKey:
    """A successor of a key, whose secret is shown once. Raises 400, 403, 404, 409."""
    with told("grace"):
        grace = values.span(body.grace)
    return await _accounts(request).rotate_key(named(request, "id"), grace)


async def revoke_key(request: Request) -> KeyCard:
    """Ends a key now. Raises 404."""
    return await _accounts(request).revoke_key(named(request, "id"))


async def list_plans(request: Request, query: Paging) -> Page[PlanCard]:
    """The plans, by name."""
    found = [plan for plan in plans(request.gateway.config) if plan.name > (query.after or "")]
    return page(found, query, lambda card: card.name)


async def sum_usage(request: Request, query: SumQuery) -> Page[UsageCard]:
    """What requests took and cost: sums for each group, in the order of the groups."""
    with told("by"):
        by = groups(query.by)
    kinds = GenericAlias(tuple, tuple(Time if name == "day" else Text for name in by))
    after = _point(query, kinds) if by else None
    accounts, window = _accounts(request), query.window()
    lines = await accounts.usage(window, by, after, query.limit + 1)
    summed = page(lines, query, lambda line: _cursor(line.group))
    cards = [usage_card(line, by) for line in summed.data]
    if query.latency:
        known = await accounts.latencies(window, by, after, query.limit)
        for card, line in zip(cards, summed.data, strict=True):
            card.latency_ms = latency_card(known.get(line.group))
    return Page(cards, summed.has_more, summed.next)


async def list_requests(request: Request, query: UsageQuery) -> Page[RequestCard]:
    """The requests that ran, newest first."""
    before = _point(query, tuple[Time, Text])
    rows = await _accounts(request).requests(query.window(), before, query.limit + 1)
    found = page(rows, query, lambda row: _cursor((row.at, row.id)))
    return Page([request_card(row) for row in found.data], found.has_more, found.next)


async def list_events(request: Request, query: Paging) -> Page[EventCard]:
    """The audit, newest first."""
    found = await _accounts(request).events(query.after, query.limit + 1)
    return page(found, query, lambda card: card.id)


async def list_models(request: Request, query: Paging) -> Page[Fit]:
    """Every configured model, as it stands now."""
    return page([fit(each) for each in _deployments(request, query)], query, lambda card: card.id)


async def list_deployments(request: Request, query: Paging) -> Page[DeploymentCard]:
    """Every configured model with its servers, as it stands now in the process that answers."""
    return page([deployment_card(each) for each in _deployments(request, query)], query, lambda card: card.id)


def _deployments(request: Request, query: Paging) -> list[Deployment]:
    """Those past the cursor, in the order of the configuration. Raises 400."""
    found = list(request.gateway.pool.deployments.values())
    names = [each.id for each in found]
    if query.after is None:
        return found
    if query.after not in names:
        raise _no_cursor()
    return found[names.index(query.after) + 1 :]


def _accounts(request: Request) -> Accounts:
    gateway = request.gateway
    return Accounts(gateway.store, gateway.config, who(request), gateway.clock)


def who(request: Request) -> str:
    """The operator's name in the audit."""
    client = request.scope.get("client")
    return f"admin:{client[0]}" if client else "admin"


def named(request: Request, param: str) -> str:
    """What the path names. Raises 404 for what nothing is called."""
    name = request.path_params[param]
    if len(name) > 200 or not name.isprintable():
        raise NotFound(f"There is no {name[:100]!r}.", param=param, code="not_found")
    return name


def _dollars(param: str, text: str | None) -> int | None:
    with told(param):
        return None if text is None else values.dollars(text)


def page(found: Sequence[T], query: Paging, cursor: Callable[[T], str]) -> Page[T]:
    """Of what was found, which is one more than asked for where there is more."""
    data = list(found[: query.limit])
    more = len(found) > query.limit
    return Page(data, more, cursor(data[-1]) if more else None)


def _cursor(point: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(point)).decode().rstrip("=")


def _point(query: Paging, kinds: Any) -> Any:
    """What `_cursor` made of a tuple of these `kinds`; None where none was sent. Raises 400."""
    if query.after is None:
        return None
    try:
        padded = query.after + "=" * (-len(query.after) % 4)
        return msgspec.json.decode(base64.b64decode(padded, b"-_", validate=True), type=kinds)
    except ValueError as error:
        raise _no_cursor() from error


def _no_cursor() -> InvalidRequest:
    return InvalidRequest("Invalid 'after': send the `next` of the page before.", param="after", code="invalid_value")
