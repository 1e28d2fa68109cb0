"""What a request costs: credits held for the most that it can, settled by what it used just before its last frame."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from config import Price
from handlers.door.errors import ApiError, Forbidden
from handlers.door.lifetime import RELEASED_IN, Headers, Request
from store import accounts
from store.records import Closing, Failure, Held, Hold, Recorded, StoreUnavailable, Units, Usage

if TYPE_CHECKING:
    from handlers.door.gateway import Gateway

__all__ = ["Bill", "InsufficientCredits", "Tariff", "Units", "bill", "hold"]

MILLION = 1_000_000
CENT = 10_000_000  # nano-dollars
LARGE = 256 << 10
"""Bytes from which on an answer is recorded beside the loop: the teller's transactions are short ones."""


class Tariff:
    """A model's price in nano-dollars: for a million of each unit."""

    __slots__ = ("_rates",)

    def __init__(self, price: Price) -> None:
        cached = price.input if price.cached_input is None else price.cached_input
        each, second = price.images * MILLION, price.seconds * 1000
        self._rates = (price.input, cached - price.input, price.output, each, price.characters, second)

    def cost(self, units: Units) -> int:
        """Nano-dollars, rounded up once."""
        input, cached, output, images, characters, milliseconds = self._rates
        total = (
            units.input_tokens * input
            + units.cached_tokens * cached
            + units.output_tokens * output
            + units.images * images
            + units.characters * characters
            + units.milliseconds * milliseconds
        )
        return -(-total // MILLION)


class Bill:
    """What one request owes: credits that it holds, usage to be paid, an idempotency key to be answered for."""

    __slots__ = ("_at", "_ended", "_request", "_tariff", "claim", "held", "model", "most", "usage")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._tariff: Tariff | None = None
        self._ended = False
        self._at = 0
        self.model: str | None = None
        self.most = 0  # nano-dollars that are held
        self.held = False
        self.claim: bytes | None = None
        self.usage: Usage | None = None  # what ran, once it is settled
        request.on_end(self.release)

    async def hold(self, model: str, most: Units, *, stoppable: bool) -> None:
        """Set aside what `most` costs with a model. Raises 402, 403 or StoreUnavailable."""
        request = self._request
        gateway = request.gateway
        self.model = model
        self._tariff = gateway.tariffs.get(model)
        if self._tariff is None:
            request.finishes = request.finishes or (request.place is not None and not stoppable)
            return
        assert request.authority is not None, "the endpoint admits first"
        workspace = request.authority.workspace
        self.most = self._tariff.cost(most)
        if self.most == 0:
            return
        if self.most > accounts.MOST:  # more than a number of the store can be, and than anybody has
            raise InsufficientCredits(0, self.most, gateway.config.credits.topup_url)
        self.held = True  # for all we know, until the store has answered
        teller = gateway.store.teller
        limit = gateway.config.plans[workspace.plan].spend_limit
        held = await teller.hold(Hold(request.id, teller.process, workspace.name, self.most, limit))
        if not held.granted:
            self.held = False
            raise _refusal(held, self.most, gateway)
        request.finishes = request.finishes or not stoppable

    async def settle(self, headers: Headers, body: bytes, *, streamed: bool) -> None:
        """The answer is complete but for its last frame: once this returns, the ledger has it.

        `headers` and `body` are the answer's, for who asks again with the same key. Raises StoreUnavailable.
        """
        closing = self._closing(whole=True, used=self._request.used)
        stages = [bill(stage) for stage in self._request.stages]  # what each owes is settled with it
        closing.also = [stage._closed() for stage in stages]
        if closing.claim is not None:
            settings = self._request.gateway.config.idempotency
            kept = body if len(body) <= settings.max_body else None
            closing.answer = Recorded(headers, kept, streamed)
            closing.expires_at = self._request.gateway.clock() + int(settings.retention * MILLION)
        store = self._request.gateway.store
        self._ended = True
        try:
            if closing.answer is not None and len(closing.answer.body or b"") > LARGE:
                await self._settle_large(closing)
            elif self._request.unchecked:
                store.teller.release(closing)  # the database is away: it is told when it is back
            else:
                await store.teller.settle(closing)
        except asyncio.CancelledError:
            store.teller.release(closing)  # the client left at the last moment: all of it ran
            raise
        except BaseException:
            for each in (self, *stages):
                each._ended = False
            raise

    def _closed(self) -> Closing:
        """Of a stage, which ends with the whole."""
        self._ended = True
        return self._closing(whole=True, used=self._request.used)

    async def _settle_large(self, closing: Closing) -> None:
        """Beside the loop; in it, where the database is away or busy: the teller tries again."""
        gateway = self._request.gateway
        try:
            await gateway.store.run(accounts.settle([closing], gateway.clock()))
        except StoreUnavailable:
            await gateway.store.teller.settle(closing)

    def release(self) -> Awaitable[object] | None:
        """The request has ended: unless it is settled, what a client that left let run is owed, and what was told until
        the deadline; of an answer that failed, only what was whole before."""
        if self._ended:
            return None
        self._ended = True
        request = self._request
        given_up = request.left or request.overdue
        failed = not given_up and not (request.failed == 504 and request.started)
        closing = self._closing(whole=False, used=request.kept if failed else request.used)
        closing.failure = self._failure()
        teller = request.gateway.store.teller
        if not closing.held and closing.claim is None and closing.usage is None:
            if closing.failure is not None:
                teller.release(closing)  # for the reports: nobody waits for that
            return None
        return asyncio.wait([teller.release(closing)], timeout=0 if teller.away else RELEASED_IN)

    def _closing(self, *, whole: bool, used: Callable[[], Units] | None) -> Closing:
        return Closing(self._request.id, self.held, self._usage(whole=whole, used=used), self.claim)

    def _usage(self, *, whole: bool, used: Callable[[], Units] | None) -> Usage | None:
        """What ran; None where nothing did, or nobody knows."""
        request = self._request
        if self.model is None or used is None:
            return None
        units = used()
        if not whole and units == _NOTHING:
            return None
        cost = min(self._tariff.cost(units), self.most) if self._tariff is not None else 0
        assert request.authority is not None, "the endpoint admits first"
        key = request.authority.key
        self._at = self._at or request.gateway.clock()  # once: it is a part of the row's identity
        duration = int(request.lasted * MILLION)
        self.usage = Usage(self._at, key.workspace, key.id, self.model, units, cost, whole, duration)
        return self.usage

    def _failure(self) -> Failure | None:
        """Of a request that reached a model and was answered with an error that is not its own."""
        request = self._request
        if self.model is None or request.failed < 500 or request.left:
            return None
        assert request.authority is not None, "the endpoint admits first"
        key = request.authority.key
        return Failure(self._at or request.gateway.clock(), key.workspace, key.id, self.model, request.failed)


_NOTHING = Units()


def hold(request: Request, model: str, most: Units, *, stoppable: bool = False) -> Awaitable[None]:
    """Begin to pay for an inference that takes at most `most`; `request.used` tells from then on what it took.

    One that is not `stoppable` runs to its end at Triton also when the client leaves: so it does here, and is paid.
    Raises 402, 403 or StoreUnavailable.
    """
    return bill(request).hold(model, most, stoppable=stoppable)


def bill(request: Request) -> Bill:
    """The request's bill, opened when there is none."""
    if request.bill is None:
        request.bill = Bill(request)
    return request.bill


def _refusal(held: Held, required: int, gateway: "Gateway") -> ApiError:
    if held.credits >= required and held.limit is not None:
        return Forbidden(
            f"The monthly spend limit of this workspace, ${_dollars(held.limit)}, leaves too little for this request:"
            f" it may cost ${_dollars(required)}; raise the limit, or wait for the next month.",
            code="plan_limit_exceeded",
        )
    return InsufficientCredits(held.credits, required, gateway.config.credits.topup_url)


class InsufficientCredits(ApiError):
    """402: the workspace's credits are fewer than the most that the request can cost."""

    status = 402
    type = code = "insufficient_credits"

    def __init__(self, balance: int, required: int, topup_url: str | None) -> None:
        where = f" at {topup_url}" if topup_url else ""
        super().__init__(
            f"This request may cost ${_dollars(required)}, and the workspace has ${_dollars(max(balance, 0))} to spend;"
            f" add credits{where}, or ask for less (max_tokens bounds the cost of a text)."
        )
        self.balance, self.required, self.topup_url = balance, required, topup_url

    def body(self) -> dict[str, object]:
        """The error object; cents round the balance down, the requirement up."""
        body: dict[str, dict[str, object]] = super().body()
        body["error"] |= {
            "current_balance_cents": self.balance // CENT,
            "required_cents": -(-self.required // CENT),
            "topup_url": self.topup_url,
        }
        return dict(body)


def _dollars(nano: int) -> str:
    """As exact as it is, two decimals at least."""
    whole, part = divmod(nano, 1_000_000_000)
    decimals = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{whole:,}.{decimals}"
