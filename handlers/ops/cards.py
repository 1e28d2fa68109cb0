"""What the operator is shown, the same by the command line's --json and by /admin.

Times are integer µs since the epoch, UTC; a field that ends in _usd is a decimal of dollars, exact.
"""

from datetime import date, timedelta
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from config import Plan
from handlers.ops.values import usd
from store.records import Account, Event, Units
from store.reports import Granted, Latency, Tenant, UsageLine, UsageRow

T = TypeVar("T")

MONEY = ("amount", "spend_limit", "credits_low")  # in the details of an event


class Page(msgspec.Struct, Generic[T], tag_field="object", tag="list"):
    """A part of a list; `next` is what `after` is to be for the part that follows."""

    data: list[T]
    has_more: bool
    next: str | None


class PlanCard(msgspec.Struct):
    """A plan, in requests per minute; `concurrency` and `spend_limit_usd` (per month) are a workspace's."""

    name: str
    default: int
    ceiling: int
    burst: int | None
    concurrency: int | None
    spend_limit_usd: str | None
    keys: bool


class WorkspaceCard(msgspec.Struct):
    """A tenant; `ceiling` (requests per minute) overrides that of its plan, and `credits_low_usd`, below which a
    webhook is told, that of the settings."""

    name: str
    plan: str
    ceiling: int | None
    spend_limit_usd: str | None
    credits_low_usd: str | None
    credits_usd: str
    created_at: int


class AccountCard(msgspec.Struct):
    """The money of a workspace: `credits_usd` is free, `held_usd` set aside for what is running.

    `spent_usd` is of the calendar `month`, UTC, what is held included; `spend_limit_usd` bounds that.
    """

    workspace: str
    credits_usd: str
    held_usd: str
    month: str
    spent_usd: str
    spend_limit_usd: str | None


class GrantCard(msgspec.Struct):
    """Credits that were added, and `by` whom."""

    id: str
    at: int
    amount_usd: str
    note: str
    by: str


class KeyCard(msgspec.Struct):
    """A key without its secret, of which `prefix` is the start. `last_used_at` is some seconds late."""

    id: str
    workspace: str
    name: str
    prefix: str
    pipeline: str | None
    limit: int | None
    models: list[str] | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    rotated_from_id: str | None
    last_used_at: int | None


class NewKey(KeyCard):
    """A key and its secret, which is shown here and never again."""

    secret: ClassVar = True  # is shown once: it cannot be kept for who asks again

    key: str


class EventCard(msgspec.Struct):
    """One line of the audit: who (`by`) did what (`action`) to which `subject`."""

    id: str
    at: int
    by: str
    action: str
    subject: str
    details: dict[str, Any]


class LatencyCard(msgspec.Struct):
    """How many ms half of the requests took at most, and 19 of 20."""

    p50: float
    p95: float


class UsageCard(msgspec.Struct, kw_only=True):
    """What a group of requests took of the models and what it cost; the fields that were asked for name the group.

    `errors`: those that reached a model and failed, beside the `requests`, which ran.
    """

    day: str | UnsetType = UNSET
    workspace: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    requests: int
    errors: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    images: int
    characters: int
    seconds: float
    cost_usd: str
    latency_ms: LatencyCard | UnsetType | None = UNSET


class RequestCard(msgspec.Struct):
    """One request that ran; not `whole` if its client left before the end."""

    id: str
    at: int
    workspace: str
    key: str
    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    images: int
    characters: int
    seconds: float
    cost_usd: str
    whole: bool
    duration_ms: float | None


def plan_card(name: str, plan: Plan) -> PlanCard:
    """Of a table of the configuration."""
    return PlanCard(
        name, plan.default, plan.ceiling, plan.burst, plan.concurrency, _optional(plan.spend_limit), plan.keys
    )


def workspace_card(tenant: Tenant) -> WorkspaceCard:
    """Of a row of the store."""
    return WorkspaceCard(
        tenant.name,
        tenant.plan,
        tenant.ceiling,
        _optional(tenant.spend_limit),
        _optional(tenant.credits_low),
        usd(tenant.credits),
        tenant.created_at,
    )


def account_card(account: Account) -> AccountCard:
    """Of a row of the store."""
    return AccountCard(
        account.workspace,
        usd(account.credits),
        usd(account.held),
        f"{account.month // 100}-{account.month % 100:02}",
        usd(account.spent),
        _optional(account.spend_limit),
    )


def grant_card(granted: Granted) -> GrantCard:
    """Of a row of the store."""
    return GrantCard(granted.id, granted.at, usd(granted.amount), granted.note, granted.by)


def event_card(event: Event) -> EventCard:
    """Of a row of the store."""
    details = dict(event.details)
    for name in MONEY:
        if name in details:
            details[f"{name}_usd"] = _optional(details.pop(name))
    return EventCard(event.id, event.at, event.by, event.action, event.subject, details)


def usage_card(line: UsageLine, by: list[str]) -> UsageCard:
    """Of a line of the report, which was asked for `by` these."""
    group = dict(zip(by, line.group, strict=True))
    if "day" in group:
        group["day"] = (date(1970, 1, 1) + timedelta(days=group["day"])).isoformat()
    return UsageCard(requests=line.requests, errors=line.errors, **_taken(line.units), cost_usd=usd(line.cost), **group)


def latency_card(latency: Latency | None) -> LatencyCard | None:
    """Of a row of the store; None where nothing ran whose time is known."""
    return None if latency is None else LatencyCard(latency.p50 / 1000, latency.p95 / 1000)


def request_card(row: UsageRow) -> RequestCard:
    """Of a row of the store."""
    return RequestCard(
        row.id,
        row.at,
        row.workspace,
        row.key,
        row.model,
        **_taken(row.units),
        cost_usd=usd(row.cost),
        whole=row.whole,
        duration_ms=None if row.duration is None else row.duration / 1000,
    )


def _taken(units: Units) -> dict[str, Any]:
    fields = msgspec.structs.asdict(units)
    return fields | {"seconds": fields.pop("milliseconds") / 1000}


def _optional(nano: int | None) -> str | None:
    return None if nano is None else usd(nano)
