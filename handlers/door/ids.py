"""Ids that are unique across processes and restarts, and cost a counter's step."""

import itertools
import os


class _Process:
    """What sets this process's ids apart from any other's."""

    token = os.urandom(8).hex()


_count = itertools.count(1)


def fresh(prefix: str) -> str:
    """The prefix and 24 hex digits: 16 that are random per process, 8 that count."""
    return f"{prefix}{_Process.token}{next(_count):08x}"


def request_id() -> str:
    """The id of a request: X-Request-Id."""
    return fresh("req_")


def _renew() -> None:
    _Process.token = os.urandom(8).hex()


os.register_at_fork(after_in_child=_renew)
