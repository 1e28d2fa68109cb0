"""The verbs for workspaces, keys, credits, usage and the audit. They work on the store itself: no gateway need run."""

import argparse
import asyncio
import contextlib
import os
import pwd
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from msgspec import UNSET

from config import Config
from handlers.door.admission import judge
from handlers.ops import values
from handlers.ops.accounts import ALL, Accounts, groups, plans
from handlers.ops.cards import usage_card
from handlers.ops.tables import show
from store import Clock, Store, open_store
from store.reports import GROUPS, UsageLine, Window

T = TypeVar("T")

WHEN = "a span back from now (7d, 12h) or a date (2027-01-31: its midnight, UTC)"


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Put them into a parser."""
    _workspaces(group_of(verbs, "workspaces", "Create, change and list workspaces."), common)
    _keys(group_of(verbs, "keys", "Create, rotate, revoke and list keys."), common)
    _credits(group_of(verbs, "credits", "Grant credits, and show what is left."), common)
    _usage(verbs, common)
    audit = verb(verbs, common, "audit", "List the changes of keys, workspaces and credits, newest first.", _audit)
    audit.add_argument("--limit", type=reader(_rows), default=1000, metavar="N", help="at most N (default: 1000)")
    audit.add_argument("--after", metavar="ID", help="those that follow this one")
    verb(verbs, common, "plans", "List the plans of the configuration.", _plans)


def group_of(verbs: Any, name: str, text: str) -> Any:
    """A verb that has verbs of its own."""
    added = verbs.add_parser(name, help=text, description=text)
    return added.add_subparsers(dest="action", required=True, metavar="ACTION")


def verb(
    group: Any,
    common: argparse.ArgumentParser,
    name: str,
    text: str,
    handler: Callable[[argparse.Namespace, Config], int],
) -> argparse.ArgumentParser:
    """One more of a group, which is obeyed by `handler`."""
    added: argparse.ArgumentParser = group.add_parser(name, help=text, description=text, parents=[common])
    added.set_defaults(handler=handler)
    return added


def _workspaces(group: Any, common: argparse.ArgumentParser) -> None:
    create = verb(group, common, "create", "A new workspace on a plan.", _create_workspace)
    create.add_argument("name", type=reader(values.workspace_name), metavar="NAME")
    create.add_argument("--plan", required=True)
    create.add_argument(
        "--ceiling", type=reader(values.positive), metavar="N", help="requests per minute, instead of the plan's"
    )
    create.add_argument("--spend-limit", type=reader(values.dollars), metavar="DOLLARS", help="per calendar month")
    change = verb(group, common, "set", "Another plan or limit; acts on the next request.", _set_workspace)
    change.add_argument("name", metavar="NAME")
    change.add_argument("--plan", default=UNSET)
    change.add_argument(
        "--ceiling",
        type=reader(values.positive, none=True),
        default=UNSET,
        metavar="N",
        help="requests per minute; none: the plan's",
    )
    change.add_argument(
        "--spend-limit",
        type=reader(values.dollars, none=True),
        default=UNSET,
        metavar="DOLLARS",
        help="per calendar month, UTC; none: no limit",
    )
    change.add_argument(
        "--credits-low",
        type=reader(values.dollars, none=True),
        default=UNSET,
        metavar="DOLLARS",
        help="webhooks are told when less is left; none: what the settings say",
    )
    verb(group, common, "list", "All workspaces.", _list_workspaces)


def _keys(group: Any, common: argparse.ArgumentParser) -> None:
    create = verb(group, common, "create", "A new key; this is the only time that it is shown.", _create_key)
    create.add_argument("--workspace", required=True, metavar="W")
    create.add_argument("--pipeline", metavar="ID", help="bind the key to one pipeline")
    create.add_argument(
        "--limit", type=reader(values.positive), metavar="N", help="requests per minute (default: the plan's)"
    )
    create.add_argument(
        "--expires",
        type=reader(values.expiry),
        metavar="WHEN",
        help="a span (30d, 12h) or a date (2027-01-31); default: never",
    )
    create.add_argument("--name", default="", metavar="TEXT")
    create.add_argument("--model", action="append", metavar="ID", help="allow only this model; may be given again")
    rotate = verb(group, common, "rotate", "A successor; the old key works on for a while.", _rotate_key)
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument(
        "--grace", type=reader(values.span), default=timedelta(hours=24), metavar="SPAN", help="default: 24h"
    )
    verb(group, common, "revoke", "End a key now.", _revoke_key).add_argument("id", metavar="ID")
    listing = verb(group, common, "list", "Keys, without their secrets.", _list_keys)
    listing.add_argument("--workspace", metavar="W")


def _credits(group: Any, common: argparse.ArgumentParser) -> None:
    grant = verb(group, common, "grant", "Add credits to a workspace.", _grant)
    grant.add_argument("workspace", metavar="W")
    grant.add_argument("amount", type=reader(values.dollars), metavar="DOLLARS", help="a decimal, such as 25 or 0.5")
    grant.add_argument("--note", default="", metavar="TEXT", help="what for; kept in the audit")
    shown = verb(group, common, "show", "What a workspace has left, and has spent this month.", _account)
    shown.add_argument("workspace", metavar="W")


def _usage(verbs: Any, common: argparse.ArgumentParser) -> None:
    usage = verb(verbs, common, "usage", "Sum up what ran and what it cost.", _sum_up)
    usage.add_argument("--workspace", metavar="W")
    usage.add_argument("--key", metavar="ID")
    usage.add_argument("--model", metavar="ID")
    usage.add_argument("--since", type=reader(values.moment), metavar="WHEN", help=WHEN)
    usage.add_argument("--until", type=reader(values.moment), metavar="WHEN", help="likewise; what ran before it")
    usage.add_argument(
        "--by",
        type=reader(groups),
        default=["workspace", "model"],
        metavar="FIELDS",
        help=f"of {', '.join(GROUPS)}, with commas between them (default: workspace,model)",
    )


def with_store(config: Config, ask: Callable[[Store, Clock], Awaitable[T]]) -> T:
    """What `ask` makes of a store that is opened for it."""

    async def go() -> T:
        clock = Clock()
        store = open_store(config.store.url, judge(config.plans), clock=clock)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            await store.migrate()
            return await ask(store, clock)

    return asyncio.run(go())


def _asked(config: Config, ask: Callable[[Accounts], Awaitable[T]]) -> T:
    return with_store(config, lambda store, clock: ask(Accounts(store, config, who(), clock)))


def _create_workspace(options: argparse.Namespace, config: Config) -> int:
    name, plan, ceiling, limit = options.name, options.plan, options.ceiling, options.spend_limit
    return show(
        options,
        _asked(config, lambda accounts: accounts.create_workspace(name, plan, ceiling=ceiling, spend_limit=limit)),
    )


def _set_workspace(options: argparse.Namespace, config: Config) -> int:
    change = {"plan": options.plan, "ceiling": options.ceiling, "spend_limit": options.spend_limit}
    change["credits_low"] = options.credits_low
    return show(options, _asked(config, lambda accounts: accounts.set_workspace(options.name, **change)))


def _list_workspaces(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.workspaces()))


def _create_key(options: argparse.Namespace, config: Config) -> int:
    return show(
        options,
        _asked(
            config,
            lambda accounts: accounts.create_key(
                options.workspace,
                name=options.name,
                pipeline=options.pipeline,
                limit=options.limit,
                models=options.model,
                expires_at=options.expires,
            ),
        ),
    )


def _rotate_key(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.rotate_key(options.id, options.grace)))


def _revoke_key(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.revoke_key(options.id)))


def _list_keys(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.keys(options.workspace)))


def _grant(options: argparse.Namespace, config: Config) -> int:
    workspace, amount, note = options.workspace, options.amount, options.note
    return show(options, _asked(config, lambda accounts: accounts.grant(workspace, amount, note)))


def _account(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.account(options.workspace)))


def _sum_up(options: argparse.Namespace, config: Config) -> int:
    by: list[str] = options.by
    window = Window(options.workspace, options.key, options.model, options.since, options.until)

    async def ask(accounts: Accounts) -> tuple[list[UsageLine], list[UsageLine]]:
        return await accounts.usage(window, by), await accounts.usage(window)

    lines, (total,) = _asked(config, ask)
    return show(options, [usage_card(line, by) for line in lines], usage_card(total, []) if by else None)


def _audit(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda accounts: accounts.events(options.after, options.limit)))


def _plans(options: argparse.Namespace, config: Config) -> int:
    return show(options, plans(config))


def reader(read: Callable[[str], T], *, none: bool = False) -> Callable[[str], T | None]:
    """For argparse: its own message for a ValueError would not say why. With `none`, that word is None."""

    def argument(text: str) -> T | None:
        if none and text in values.FOREVER:
            return None
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return argument


def _rows(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= ALL:
        raise ValueError(f"{text[:100]!r} is not a whole number from 1 to {ALL}")
    return int(text)


def who() -> str:
    """The operator's name in the audit."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # docker --user 54321
        return f"cli:uid {os.getuid()}"
