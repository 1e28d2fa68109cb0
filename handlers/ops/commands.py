"""The command line, `conch VERB`: tables for people and, with --json, JSON for programs."""

import argparse
import asyncio
import contextlib
import logging
import os
import pwd
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET

from config import MOST_PER_MINUTE, Config, ConfigError, Plan, api_key, load
from handlers.door.admission import judge
from handlers.door.gateway import VERSION
from handlers.door.lifetime import Lifetime
from handlers.ops import check
from handlers.ops.inside import get
from store import ledger, open_store
from store.ledger import Script
from store.records import Key, StoreError, Workspace

Build = Callable[[Config], Lifetime]
Serve = Callable[[Config], None]

FOREVER = {"none", "never"}
LONGEST, LATEST = timedelta(days=36_500), 2999  # a span, and the year of a moment
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPAN = re.compile(r"(\d{1,12})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Refused(Exception):
    """What the operator asked cannot be done; one sentence, exit status 1."""


def run(arguments: Sequence[str], build: Build, serve: Serve) -> int:
    """Parse and obey; returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        if options.verb == "version":
            return _show(options, {"version": VERSION})
        config = load(options.config, options.env)
        if options.verb == "serve":
            serve(config)
            return 0
        if options.verb == "get":
            return asyncio.run(get(build(config), options.path, api_key(), sys.stdout))
        handler: Callable[[argparse.Namespace, Config], int] = options.handler
        return handler(options, config)
    except (ConfigError, Refused, StoreError, ValueError) as error:
        print(f"conch: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="conch", description="An OpenAI gateway for Triton Inference Server.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="conch.toml (default: CONCH_CONFIG, else config/conch.toml)")
    common.add_argument("--env", metavar="NAME", help="the [env.NAME] that lies over it (default: CONCH_ENV)")
    common.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, handler: Callable[[argparse.Namespace, Config], int] | None = None) -> Any:
        added = verbs.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(handler=handler)
        return added

    verb("serve", "Run the gateway.")
    verb("check", "Bind every configured model against its live server; exit 1 if any does not fit.", _check)
    verb("get", "Answer a GET of PATH as the gateway would, with the key in CONCH_API_KEY.").add_argument(
        "path", metavar="PATH"
    )
    verb("migrate", "Bring the store's schema up to date.", _migrate)
    verb("version", "Print the version.")
    verb("models", "List the configured models.", _models)
    verb("audit", "List the changes of keys and workspaces, newest first.", _audit)
    _workspace_verbs(verbs, common)
    _key_verbs(verbs, common)
    return parser


def _workspace_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    group = verbs.add_parser("workspaces", help="Create, change and list workspaces.").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    create = group.add_parser("create", parents=[common], help="A new workspace on a plan.")
    create.add_argument("name", type=_workspace_name, metavar="NAME")
    create.add_argument("--plan", required=True)
    create.add_argument("--ceiling", type=_positive, metavar="N", help="requests per minute, instead of the plan's")
    create.set_defaults(handler=_create_workspace)
    change = group.add_parser("set", parents=[common], help="Another plan or ceiling; acts on the next request.")
    change.add_argument("name", metavar="NAME")
    change.add_argument("--plan")
    change.add_argument(
        "--ceiling",
        type=_positive_or_none,
        default=UNSET,
        metavar="N",
        help="requests per minute; none: the plan's",
    )
    change.set_defaults(handler=_set_workspace)
    group.add_parser("list", parents=[common], help="All workspaces.").set_defaults(handler=_list_workspaces)


def _key_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    group = verbs.add_parser("keys", help="Create, rotate, revoke and list keys.").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    create = group.add_parser("create", parents=[common], help="A new key; this is the only time that it is shown.")
    create.add_argument("--workspace", required=True, metavar="W")
    create.add_argument("--pipeline", metavar="ID", help="bind the key to one pipeline")
    create.add_argument("--limit", type=_positive, metavar="N", help="requests per minute (default: the plan's)")
    create.add_argument(
        "--expires",
        type=_moment,
        metavar="WHEN",
        help="a span (30d, 12h) or a date (2027-01-31); default: never",
    )
    create.add_argument("--name", default="", metavar="TEXT")
    create.add_argument("--model", action="append", metavar="ID", help="allow only this model; may be given again")
    create.set_defaults(handler=_create_key)
    rotate = group.add_parser("rotate", parents=[common], help="A successor; the old key works on for a while.")
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument("--grace", type=_span, default=timedelta(hours=24), metavar="SPAN", help="default: 24h")
    rotate.set_defaults(handler=_rotate_key)
    revoke = group.add_parser("revoke", parents=[common], help="End a key now.")
    revoke.add_argument("id", metavar="ID")
    revoke.set_defaults(handler=_revoke_key)
    listing = group.add_parser("list", parents=[common], help="Keys, without their secrets.")
    listing.add_argument("--workspace", metavar="W")
    listing.set_defaults(handler=_list_keys)


def _ask(config: Config, *scripts: Callable[[int], Script[Any]]) -> list[Any]:
    """Run scripts of the ledger, each at the time of its turn."""

    async def go() -> list[Any]:
        store = open_store(config.store.url, judge(config.plans))
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            await store.migrate()
            return [await store.run(script(_now())) for script in scripts]

    return asyncio.run(go())


def _check(options: argparse.Namespace, config: Config) -> int:
    models = asyncio.run(check.fits(config))
    if options.json:
        _show(options, models)
    else:
        print(check.printed(models))
    return 0 if all(model.verified for model in models) else 1


def _migrate(options: argparse.Namespace, config: Config) -> int:
    async def go() -> list[int]:
        store = open_store(config.store.url, judge(config.plans))
        try:
            return await store.migrate()
        finally:
            await store.close()

    return _show(options, {"applied": asyncio.run(go())})


def _models(options: argparse.Namespace, config: Config) -> int:
    fields = ("id", "task", "aliases", "upstream", "model", "preset", "workspaces")
    return _show(options, [{field: getattr(model, field) for field in fields} for model in config.models])


def _audit(options: argparse.Namespace, config: Config) -> int:
    return _show(options, _ask(config, lambda now: ledger.list_events(limit=1000))[0])


def _create_workspace(options: argparse.Namespace, config: Config) -> int:
    _plan(config, options.plan)
    made = _ask(
        config,
        lambda now: ledger.create_workspace(options.name, options.plan, options.ceiling, by=_who(), now=now),
    )
    return _show(options, made[0])


def _set_workspace(options: argparse.Namespace, config: Config) -> int:
    if options.plan is None and options.ceiling is UNSET:
        raise Refused("nothing to change: give --plan or --ceiling.")
    if options.plan is not None:
        _plan(config, options.plan)
    plan = UNSET if options.plan is None else options.plan
    made = _ask(
        config,
        lambda now: ledger.set_workspace(options.name, plan=plan, ceiling=options.ceiling, by=_who(), now=now),
    )
    return _show(options, made[0])


def _list_workspaces(options: argparse.Namespace, config: Config) -> int:
    return _show(options, _ask(config, lambda now: ledger.list_workspaces(limit=100_000))[0])


def _create_key(options: argparse.Namespace, config: Config) -> int:
    (workspace,) = _ask(config, lambda now: ledger.get_workspace(options.workspace))
    plan = _minting(config, workspace)
    ceiling = workspace.ceiling or plan.ceiling
    if options.limit is not None and options.limit > ceiling:
        raise Refused(f"--limit {options.limit} is over the ceiling of workspace {workspace.name!r}, {ceiling}.")
    if options.pipeline is not None and not any(
        pipeline.id == options.pipeline and pipeline.workspace == workspace.name for pipeline in config.pipelines
    ):
        raise Refused(f"workspace {workspace.name!r} has no pipeline {options.pipeline!r}.")
    known = {model.id for model in config.models}
    for model in options.model or ():
        if model not in known:
            raise Refused(f"there is no model {model!r}.")
    minted = ledger.mint()
    fields = {
        "name": options.name,
        "pipeline": options.pipeline,
        "limit": options.limit,
        "models": options.model,
    }
    (key,) = _ask(
        config,
        lambda now: ledger.create_key(minted, workspace.name, **fields, expires_at=options.expires, by=_who(), now=now),
    )
    return _show(options, _secret(key, minted.secret))


def _rotate_key(options: argparse.Namespace, config: Config) -> int:
    (key,) = _ask(config, lambda now: ledger.get_key(options.id))
    _minting(config, *_ask(config, lambda now: ledger.get_workspace(key.workspace)))
    minted = ledger.mint()
    grace = int(options.grace.total_seconds() * 1_000_000)
    (key,) = _ask(config, lambda now: ledger.rotate_key(options.id, minted, grace=grace, by=_who(), now=now))
    return _show(options, _secret(key, minted.secret))


def _revoke_key(options: argparse.Namespace, config: Config) -> int:
    return _show(options, _ask(config, lambda now: ledger.revoke_key(options.id, by=_who(), now=now))[0])


def _list_keys(options: argparse.Namespace, config: Config) -> int:
    if options.workspace is not None:
        _ask(config, lambda now: ledger.get_workspace(options.workspace))
    return _show(options, _ask(config, lambda now: ledger.list_keys(options.workspace, limit=100_000))[0])


def _secret(key: Key, secret: str) -> dict[str, Any]:
    return {"id": key.id, "key": secret, **msgspec.structs.asdict(key)}


def _plan(config: Config, name: str) -> Plan:
    if name not in config.plans:
        raise Refused(f"there is no plan {name!r}; there are: {', '.join(sorted(config.plans))}.")
    return config.plans[name]


def _minting(config: Config, workspace: Workspace) -> Plan:
    """The plan of a workspace that is to get a new secret."""
    plan = _plan(config, workspace.plan)
    if not plan.keys:
        raise Refused(f"the plan {workspace.plan!r} of workspace {workspace.name!r} does not include keys.")
    return plan


def _who() -> str:
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:  # docker --user 54321
        return f"cli:uid {os.getuid()}"


def _now() -> int:
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    if int(text) > MOST_PER_MINUTE:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_PER_MINUTE} requests per minute")
    return int(text)


def _positive_or_none(text: str) -> int | None:
    return None if text in FOREVER else _positive(text)


def _workspace_name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit"
        )
    return text


def _span(text: str) -> timedelta:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span such as 30m, 24h or 7d")
    try:
        span = timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        span = timedelta.max
    if span > LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than {LONGEST.days}d")
    return span


def _moment(text: str) -> int | None:
    """µs since the epoch of a span from now, or of an ISO date (its midnight, UTC); None for never."""
    if text in FOREVER:
        return None
    if _SPAN.fullmatch(text):
        moment = datetime.now(UTC) + _span(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a span such as 30d nor a date such as 2027-01-31"
            ) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment.year > LATEST:
        raise argparse.ArgumentTypeError(f"{text!r} is after the year {LATEST}; never is what never ends")
    if moment <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text!r} is in the past")
    return int(moment.timestamp() * 1_000_000)


def _show(options: argparse.Namespace, answer: Any) -> int:
    """Print an answer: a list as a table, one thing as lines; with --json as it is."""
    rows = msgspec.to_builtins(answer)
    for row in rows if isinstance(rows, list) else [rows]:
        row.pop("bucket", None)  # the store's own
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    elif isinstance(rows, list):
        print(_table(rows) if rows else "none")
    else:
        width = max(len(name) for name in rows)
        print("\n".join(f"{name.ljust(width)}  {_cell(name, value)}".rstrip() for name, value in rows.items()))
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0])] + [[_cell(name, value) for name, value in row.items()] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(name: str, value: Any) -> str:
    if value is None or value in ("", []):
        return "-"
    if name == "at" or name.endswith("_at"):
        try:
            return datetime.fromtimestamp(value / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        except (ValueError, OverflowError, OSError):
            return str(value)  # a time that no calendar of ours has
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
