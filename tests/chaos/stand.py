"""A gateway whose Triton fails: what a client sees of it, what it pays, and whether all that it took is given back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from store.records import Units
from tests.chaos.endpoints import PATIENCE, PLAN, Endpoint
from tests.chaos.proxy import SECRET, Proxy
from tests.gateway import Conch
from tests.priced import Books, Customer
from tests.raw import ERROR_KEYS, Answer, Wire, bearer

T = TypeVar("T")

ADMIN = "the-operators-own-token"
SECRETS = (*SECRET.split(" at "), "127.0.0.1", "/v2/", "Traceback", "triton", "status 5")
"""What no client may see."""


FRAME, BROKEN = "an error frame", "breaks off"


class Outcome(NamedTuple):
    """What a client saw of one request, in a word or two, and what it paid for: of a failed one, seldom anything."""

    seen: str
    paid: Units | None
    answer: Answer | None


class Stand:
    """A gateway between its clients and what is done to its Triton, over HTTP or gRPC."""

    def __init__(self, conch: Conch, books: Books, http: Proxy, grpc: Proxy) -> None:
        self.conch, self.books = conch, books
        self.http, self.grpc = http, grpc
        self._threads = ThreadPoolExecutor(32)
        self._usual: dict[Endpoint, Any] = {}

    async def deployments(self) -> list[dict[str, Any]]:
        """As /admin tells of them."""

        def asked() -> Any:
            with Wire(self.conch.url) as wire:
                wire.request("GET", "/admin/deployments?limit=1000", **bearer(ADMIN))
                return wire.answer().json["data"]

        cards: list[dict[str, Any]] = await self._aside(asked)
        return cards

    async def serving(self, *ids: str) -> None:
        """Returns when these models are served, or all, by each of their servers."""
        async with asyncio.timeout(30):
            while True:
                cards = [card for card in await self.deployments() if card["id"] in ids or not ids]
                if all(server["state"] == "serving" for card in cards for server in card["servers"]):
                    return
                await asyncio.sleep(0.02)

    async def usual(self, endpoint: Endpoint) -> Any:
        """What a model says when all is well."""
        if endpoint not in self._usual:
            _, outcome = await self.suffer(endpoint)
            assert outcome.answer is not None
            self._usual[endpoint] = endpoint.said(outcome.answer)
        return self._usual[endpoint]

    async def empty(self) -> None:
        """Asserts that no request has a place at Triton, or waits for one."""
        for card in await self.deployments():
            assert (card["outstanding"], card["queued"]) == (0, 0), card

    async def suffer(self, endpoint: Endpoint, *, haste: bool = False) -> tuple[Customer, Outcome]:
        """A new customer's request, and how it ended. Asserts what holds for all that may have gone wrong."""
        customer = await self.books.customer("10", PLAN)
        answer = await self.ask(customer, endpoint, haste=haste)
        account = await self.books.account(customer)
        rows = await self.books.usage(customer)
        assert account.held == 0, "what was held is given back"
        assert account.spent == sum(row.cost for row in rows)
        assert len(rows) <= 1
        return customer, Outcome(_seen(endpoint, answer), rows[0].units if rows else None, answer)

    async def ask(self, customer: Customer, endpoint: Endpoint, *, haste: bool = False) -> Answer | None:
        """The answer; None where it broke off."""
        body, content_type = endpoint.request(haste=haste)

        def asked() -> Answer | None:
            with Wire(self.conch.url, timeout=2 * PATIENCE) as wire:
                wire.request("POST", endpoint.path, body, content_type=content_type, **bearer(customer.key))
                try:
                    return wire.answer()
                except EOFError:
                    return None

        return await self._aside(asked)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _seen(endpoint: Endpoint, answer: Answer | None) -> str:
    """In words; asserts the shape of what is told, and that it tells no secret."""
    if answer is None:
        assert endpoint.kind == "sound", "only sound has no place for an error"
        return BROKEN
    text = answer.body.decode("utf-8", "replace")
    if answer.status != 200:
        _check(answer.error(answer.status), text)
        wait = answer.headers.get("retry-after")
        assert answer.status in (502, 503, 504), "a 500 is a bug"
        assert (wait is not None) == (answer.status == 503), answer
        return f"{answer.status} `{answer.json['error']['code']}`" + (f", `Retry-After: {wait}`" if wait else "")
    if endpoint.kind != "stream" or text.endswith("data: [DONE]\n\n"):
        assert '"error":{' not in text
        endpoint.said(answer)
        return "200"
    assert "[DONE]" not in text
    event = json.loads(text.rstrip().rpartition("data: ")[2])
    if event.get("type") == "response.failed":
        error = event["response"]["error"]
        assert event["response"]["status"] == "failed"
        _check(error, text)
        return FRAME
    assert event.keys() == {"error"}
    assert event["error"].keys() == ERROR_KEYS
    _check(event["error"], text)
    return FRAME


def _check(error: dict[str, Any], text: str) -> None:
    assert error["message"].endswith("."), error
    assert error["message"].count(". ") == 0, "one sentence"
    assert not [each for each in SECRETS if each in text], text
