"""What the operator can do with workspaces, keys and credits, and the rules of it: for the command line and /admin.

What cannot be done raises an ApiError that names the field.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from config import Config, Plan
from handlers.door.errors import Forbidden, InvalidRequest, NotFound
from handlers.ops import values
from handlers.ops.cards import (
    AccountCard,
    EventCard,
    GrantCard,
    KeyCard,
    NewKey,
    PlanCard,
    WorkspaceCard,
    account_card,
    event_card,
    grant_card,
    plan_card,
    workspace_card,
)
from store import Store, ledger, records, reports
from store.accounts import account, grant
from store.reports import GROUPS, Latency, UsageLine, UsageRow, Window
from store.script import Script

ALL = 100_000
"""Rows of a list that is wanted whole."""
LONGEST_NAME, LONGEST_NOTE = 200, 1000


class Accounts:
    """The store as the operator `by` sees it. Every method raises StoreUnavailable."""

    def __init__(self, store: Store, config: Config, by: str, clock: Callable[[], int]) -> None:
        self._store, self._config, self._by, self._clock = store, config, by, clock

    # Workspaces

    async def workspaces(self, after: str = "", limit: int = ALL) -> list[WorkspaceCard]:
        """By name."""
        return [workspace_card(each) for each in await self._store.run(reports.tenants(after=after, limit=limit))]

    async def workspace(self, name: str) -> WorkspaceCard:
        """Raises 404."""
        with named("name"):
            return workspace_card(await self._store.run(reports.tenant(name)))

    async def create_workspace(
        self, name: str, plan: str, *, ceiling: int | None = None, spend_limit: int | None = None
    ) -> WorkspaceCard:
        """Raises 400, and 409 if the name is taken."""
        with told("name"):
            values.workspace_name(name)
        self._plan(plan)

        def made() -> Script[reports.Tenant]:
            yield from ledger.create_workspace(name, plan, ceiling, by=self._by, now=self._clock())
            if spend_limit is not None:
                yield from ledger.set_workspace(name, spend_limit=spend_limit, by=self._by, now=self._clock())
            return (yield from reports.tenant(name))

        with named("name"):
            return workspace_card(await self._store.run(made()))

    async def set_workspace(
        self,
        name: str,
        *,
        plan: str | UnsetType = UNSET,
        ceiling: int | UnsetType | None = UNSET,
        spend_limit: int | UnsetType | None = UNSET,
        credits_low: int | UnsetType | None = UNSET,
    ) -> WorkspaceCard:
        """Changes what is given; acts on the next request. Raises 400, 404."""
        if all(each is UNSET for each in (plan, ceiling, spend_limit, credits_low)):
            raise InvalidRequest(
                "There is nothing to change: give a plan, a ceiling, a spend limit or a threshold of credits.",
                code="nothing_to_change",
            )
        if plan is not UNSET:
            self._plan(plan)

        def made() -> Script[reports.Tenant]:
            limits: Any = {"ceiling": ceiling, "spend_limit": spend_limit, "credits_low": credits_low}
            yield from ledger.set_workspace(name, plan=plan, **limits, by=self._by, now=self._clock())
            return (yield from reports.tenant(name))

        with named("name"):
            return workspace_card(await self._store.run(made()))

    # Credits

    async def grant(self, workspace: str, amount: int, note: str = "", once: str | None = None) -> AccountCard:
        """Adds `amount` nano-dollars, for the same `once` one time. Raises 400, 404, 409."""
        if amount < 1:
            raise invalid("amount_usd", "it is to be more than nothing")
        check_text("note", note, LONGEST_NOTE)
        with named("name"):
            granted = grant(workspace, amount, note=note, once=once, by=self._by, now=self._clock())
            return account_card(await self._store.run(granted))

    async def account(self, workspace: str) -> AccountCard:
        """Raises 404."""
        with named("name"):
            return account_card(await self._store.run(account(workspace, now=self._clock())))

    async def grants(self, workspace: str, before: str | None = None, limit: int = ALL) -> list[GrantCard]:
        """What was added, newest first, from the first one older than the id `before`. Raises 404."""
        with named("name"):
            await self._store.run(ledger.get_workspace(workspace))
        return [
            grant_card(each) for each in await self._store.run(reports.grants(workspace, before=before, limit=limit))
        ]

    # Keys

    async def keys(self, workspace: str | None = None, after: str = "", limit: int = ALL) -> list[KeyCard]:
        """Of one workspace or of all, oldest first. Raises 400 for a workspace that is not there."""
        if workspace is not None:
            await self._of(workspace)
        found = await self._store.run(ledger.list_keys(workspace, after=after, limit=limit))
        return [_key_card(key) for key in found]

    async def key(self, id: str) -> KeyCard:
        """Raises 404."""
        with named("id"):
            return _key_card(await self._store.run(ledger.get_key(id)))

    async def create_key(
        self,
        workspace: str,
        *,
        name: str = "",
        pipeline: str | None = None,
        limit: int | None = None,
        models: list[str] | None = None,
        expires_at: int | None = None,
    ) -> NewKey:
        """Raises 400, and 403 if the plan has no keys."""
        check_text("name", name, LONGEST_NAME)
        tenant = await self._of(workspace)
        plan = self._minting(tenant)
        ceiling = tenant.ceiling or plan.ceiling
        if limit is not None and limit > ceiling:
            raise InvalidRequest(
                f"The limit {limit} is over the ceiling of workspace {workspace!r}, {ceiling}.",
                param="limit",
                code="over_ceiling",
            )
        if pipeline is not None and (pipeline, workspace) not in {(p.id, p.workspace) for p in self._config.pipelines}:
            raise InvalidRequest(
                f"Workspace {workspace!r} has no pipeline {pipeline[:100]!r}.",
                param="pipeline",
                code="pipeline_not_found",
            )
        known = {model.id for model in self._config.models}
        for model in models or ():
            if model not in known:
                raise InvalidRequest(f"There is no model {model[:100]!r}.", param="models", code="model_not_found")
        minted = ledger.mint()
        fields: dict[str, Any] = {"name": name, "pipeline": pipeline, "limit": limit, "models": models}
        created = ledger.create_key(minted, workspace, **fields, expires_at=expires_at, by=self._by, now=self._clock())
        return _new_key(await self._store.run(created), minted.secret)

    async def rotate_key(self, id: str, grace: timedelta) -> NewKey:
        """A successor; the old key works for `grace` more. Raises 403, 404, and 409 if the old one works no more."""
        with named("id"):
            old = await self._store.run(ledger.get_key(id))
            self._minting(await self._store.run(ledger.get_workspace(old.workspace)))
            minted = ledger.mint()
            microseconds = grace // timedelta(microseconds=1)
            rotated = ledger.rotate_key(id, minted, grace=microseconds, by=self._by, now=self._clock())
            return _new_key(await self._store.run(rotated), minted.secret)

    async def revoke_key(self, id: str) -> KeyCard:
        """Acts on the next request. Raises 404."""
        with named("id"):
            return _key_card(await self._store.run(ledger.revoke_key(id, by=self._by, now=self._clock())))

    # What there is and what there was

    async def events(self, before: str | None = None, limit: int = ALL) -> list[EventCard]:
        """The audit, newest first, from the first one older than the id `before`."""
        return [event_card(event) for event in await self._store.run(ledger.list_events(before=before, limit=limit))]

    async def usage(
        self, window: Window, by: Sequence[str] = (), after: Sequence[Any] | None = None, limit: int = ALL
    ) -> list[UsageLine]:
        """Sums for each group of `by`."""
        return await self._store.run(reports.usage(window, by, after=after, limit=limit))

    async def latencies(
        self, window: Window, by: Sequence[str], after: Sequence[Any] | None, limit: int
    ) -> dict[tuple[Any, ...], Latency]:
        """How long what ran took, for each group of `by`."""
        return await self._store.run(reports.latencies(window, by, after=after, limit=limit))

    async def requests(self, window: Window, before: tuple[int, str] | None, limit: int) -> list[UsageRow]:
        """One by one, newest first."""
        return await self._store.run(reports.requests(window, before=before, limit=limit))

    async def _of(self, workspace: str) -> records.Workspace:
        """One that a field names."""
        try:
            return await self._store.run(ledger.get_workspace(workspace))
        except records.NotFound as error:
            raise InvalidRequest(str(error), param="workspace", code="workspace_not_found") from error

    def _plan(self, name: str) -> Plan:
        plan = self._config.plans.get(name)
        if plan is None:
            known = ", ".join(sorted(self._config.plans))
            raise InvalidRequest(
                f"There is no plan {name[:100]!r}; there are: {known}.", param="plan", code="plan_not_found"
            )
        return plan

    def _minting(self, workspace: records.Workspace) -> Plan:
        """The plan of a workspace that is to get a new secret."""
        plan = self._plan(workspace.plan)
        if not plan.keys:
            raise Forbidden(
                f"The plan {workspace.plan!r} of workspace {workspace.name!r} does not include keys.",
                param="workspace",
                code="plan_required",
            )
        return plan


def plans(config: Config) -> list[PlanCard]:
    """By name."""
    return [plan_card(name, plan) for name, plan in sorted(config.plans.items())]


def groups(text: str) -> list[str]:
    """What to sum usage by: names of GROUPS with commas between them. Raises ValueError."""
    by = [name for name in text.split(",") if name]
    for name in by:
        if name not in GROUPS or by.count(name) > 1:
            raise ValueError(f"{text[:100]!r} is not some of {', '.join(GROUPS)}, each once, with commas between them")
    return by


@contextlib.contextmanager
def told(param: str) -> Iterator[None]:
    """A ValueError within is the answer to the field `param`."""
    try:
        yield
    except ValueError as error:
        raise invalid(param, str(error)) from error


@contextlib.contextmanager
def named(param: str) -> Iterator[None]:
    """What the store says of that which `param` names: 404, or 409."""
    try:
        yield
    except records.NotFound as error:
        raise NotFound(str(error), param=param, code="not_found") from error
    except records.Conflict as error:
        raise InvalidRequest(str(error), status=409, param=param, code="conflict") from error


def check_text(param: str, text: str, longest: int) -> None:
    """Raises 400."""
    if len(text) > longest or not text.isprintable():
        raise invalid(param, f"it is to be at most {longest} printable characters")


def invalid(param: str, why: str) -> InvalidRequest:
    """400 for the value of a field."""
    return InvalidRequest(f"Invalid {param!r}: {why}.", param=param, code="invalid_value")


def _key_card(key: records.Key) -> KeyCard:
    return msgspec.convert(key, KeyCard, from_attributes=True)


def _new_key(key: records.Key, secret: str) -> NewKey:
    return NewKey(**msgspec.structs.asdict(_key_card(key)), key=secret)
