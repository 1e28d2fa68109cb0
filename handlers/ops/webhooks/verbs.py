"""The verbs for webhooks. They work on the store itself; what they leave to be sent, a running gateway sends."""

import argparse
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from msgspec import UNSET

from config import Config
from handlers.ops import values
from handlers.ops.tables import show
from handlers.ops.verbs import group_of, reader, verb, who, with_store
from handlers.ops.webhooks.desk import STATES, Desk
from handlers.ops.webhooks.events import EVERY

T = TypeVar("T")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Put them into a parser."""
    group = group_of(verbs, "webhooks", "Have events sent to a URL; see what was sent.")
    create = verb(group, common, "create", "A new webhook; this is the only time that its secret is shown.", _create)
    create.add_argument("url", metavar="URL")
    create.add_argument("--workspace", metavar="W", help="its events only (default: of all, and of the gateway)")
    _event(create, None)
    create.add_argument("--description", default="", metavar="TEXT")
    listing = verb(group, common, "list", "Webhooks, without their secrets.", _list)
    listing.add_argument("--workspace", metavar="W")
    change = verb(group, common, "set", "Change a webhook.", _set)
    change.add_argument("id", metavar="ID")
    change.add_argument("--url", default=UNSET)
    _event(change, UNSET)
    change.add_argument("--description", default=UNSET, metavar="TEXT")
    change.add_argument("--enable", dest="enabled", action="store_true", default=UNSET, help="send to it again")
    change.add_argument("--disable", dest="enabled", action="store_false", default=UNSET, help="send it no more")
    rotate = verb(group, common, "rotate", "Another secret; for a while what is sent is signed with both.", _rotate)
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument(
        "--grace", type=reader(values.span), default=timedelta(hours=24), metavar="SPAN", help="default: 24h"
    )
    for name, text, handler in (
        ("delete", "End a webhook, with what was to be sent.", _delete),
        ("test", "Send an event now, and see what is answered; exit 1 where that is no success.", _test),
    ):
        verb(group, common, name, text, handler).add_argument("id", metavar="ID")
    log = verb(group, common, "deliveries", "What was sent, is to be sent, or was given up, newest first.", _log)
    log.add_argument("--webhook", metavar="ID")
    log.add_argument("--state", choices=STATES)
    again = verb(group, common, "resend", "Have a delivery that has ended sent once more.", _resend)
    again.add_argument("id", metavar="DELIVERY")


def _event(parser: argparse.ArgumentParser, default: Any) -> None:
    known = ", ".join(EVERY)
    parser.add_argument(
        "--event", action="append", default=default, metavar="TYPE", help=f"{known}; may be given again (default: all)"
    )


def _asked(config: Config, ask: Callable[[Desk], Awaitable[T]]) -> T:
    return with_store(config, lambda store, clock: ask(Desk(store, config, who(), clock.wall)))


def _create(options: argparse.Namespace, config: Config) -> int:
    given = (options.url, options.event, options.workspace, options.description)
    return show(options, _asked(config, lambda desk: desk.create(*given)))


def _list(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda desk: desk.webhooks(options.workspace)))


def _set(options: argparse.Namespace, config: Config) -> int:
    given = {"url": options.url, "wanted": options.event, "description": options.description}
    given["enabled"] = options.enabled
    return show(options, _asked(config, lambda desk: desk.change(options.id, **given)))


def _rotate(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda desk: desk.rotate(options.id, options.grace)))


def _delete(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda desk: desk.delete(options.id)))


def _test(options: argparse.Namespace, config: Config) -> int:
    sent = _asked(config, lambda desk: desk.test(options.id))
    show(options, sent)
    return 0 if sent.state == "delivered" else 1


def _log(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda desk: desk.deliveries(options.webhook, options.state)))


def _resend(options: argparse.Namespace, config: Config) -> int:
    return show(options, _asked(config, lambda desk: desk.resend(options.id)))
