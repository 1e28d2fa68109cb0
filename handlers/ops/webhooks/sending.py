"""One attempt to deliver an event: signed, posted, judged.

`RunInfra-Signature: t=<unix>,v1=<hex>`: HMAC-SHA256 of `<t>.<raw body>` with the whole secret, "whsec_…", as the key;
while a rotation lasts, a second v1 is of the secret before.
"""

import asyncio
import hmac
from collections.abc import Callable
from random import uniform

from config import Webhooks
from store import Store
from store.records import Contended
from store.script import Script
from store.webhooks import Delivery, Due, Verdict, Webhook, judge
from upstream.fetch import Answered, Fetcher, FetchError, anywhere, check_target, is_public

SECOND = 1_000_000  # µs
TIMES = 4
"""By how much the pause grows with each failure."""
LONGEST = 6 * 3600.0
"""Seconds that a pause has at most, also where a receiver asks for more."""
SLACK = 5.0
"""Seconds that a process has, after an answer, to write down what it was."""
TRIES = 3


class Post:
    """Sends deliveries; one for each process."""

    def __init__(self) -> None:
        self._fetchers: dict[bool, Fetcher] = {}

    async def send(self, store: Store, due: Due, settings: Webhooks, clock: Callable[[], int]) -> Delivery | None:
        """One attempt and what became of it; None where the delivery is another's by now. Raises StoreUnavailable.

        `clock` gives µs.
        """
        answered, error = None, None
        try:
            check_target(due.webhook.url, private=settings.private)
            body = due.delivery.body.encode()
            headers = {
                "Content-Type": "application/json",
                "RunInfra-Signature": signature(due.webhook, body, clock()),
            }
            answered = await self._fetcher(settings).post(due.webhook.url, body, headers, timeout=settings.timeout)
        except FetchError as fault:
            error = str(fault)
        now = clock()
        verdict = _verdict(due.delivery, answered, error, settings, now)
        return await _told(store, lambda: judge(due.delivery, verdict, now=now))

    async def close(self) -> None:
        """Closes what is open."""
        for fetcher in self._fetchers.values():
            await fetcher.close()

    def _fetcher(self, settings: Webhooks) -> Fetcher:
        if settings.private not in self._fetchers:
            self._fetchers[settings.private] = Fetcher(allowed=anywhere if settings.private else is_public)
        return self._fetchers[settings.private]


def lease(settings: Webhooks) -> int:
    """µs for which a delivery is one process's: longer than any attempt of it can take."""
    return int((settings.timeout + SLACK) * SECOND)


def signature(webhook: Webhook, body: bytes, now: int) -> str:
    """The header's value, at a time in µs."""
    signed = [webhook.secret]
    if webhook.old_secret is not None and (webhook.old_until or 0) > now:
        signed.append(webhook.old_secret)
    at = str(now // SECOND)
    text = at.encode() + b"." + body
    return ",".join([f"t={at}", *(f"v1={hmac.digest(secret.encode(), text, 'sha256').hex()}" for secret in signed)])


def _verdict(delivery: Delivery, answered: Answered | None, error: str | None, settings: Webhooks, now: int) -> Verdict:
    """Any 2xx is a success; a 410 says that nothing more is wanted; the rest is tried again, as long as that may be."""
    if answered is None:
        return Verdict(False, None, error, _again(delivery, None, settings, now))
    if 200 <= answered.status < 300:
        return Verdict(True, answered.status, None)
    if answered.status == 410:
        return Verdict(False, 410, "It answered with status 410: it wants no more events.", gone=True)
    redirects = ", a redirect, which is not followed" if 300 <= answered.status < 400 else ""
    told = f"It answered with status {answered.status}{redirects}."
    return Verdict(False, answered.status, told, _again(delivery, answered.retry_after, settings, now))


def _again(delivery: Delivery, asked: int | None, settings: Webhooks, now: int) -> int | None:
    """When to try again, in µs; None where it is to be given up. A test is not tried again: somebody waits for it."""
    if delivery.type == "webhook.test":
        return None
    pause = min(settings.retry * float(TIMES ** min(delivery.attempts - 1, 12)), LONGEST) * uniform(0.9, 1.1)
    at = now + int(max(pause, min(asked or 0, LONGEST)) * SECOND)
    return at if at < delivery.since + int(settings.give_up * SECOND) else None


async def _told(store: Store, script: Callable[[], Script[Delivery | None]]) -> Delivery | None:
    """Written down, also where another transaction is in the way."""
    for attempt in range(TRIES):
        try:
            return await store.run(script())
        except Contended:
            if attempt == TRIES - 1:
                raise
            await asyncio.sleep(uniform(0, 0.1))
    raise AssertionError("it returns or raises")
