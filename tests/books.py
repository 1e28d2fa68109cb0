"""A plain model of the money: what was granted, held, charged, claimed and taken, from which all else follows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from store import accounts, processes
from store.records import Claim, Claimed, Closing, Hold, Recorded


@dataclass
class Kept:
    """An idempotency key: whose it is, and the answer once there is one."""

    owner: str
    process: str
    digest: bytes
    expires_at: int
    answer: Recorded | None = None


@dataclass
class Purse:
    """The account of one workspace. Credits and what is spent are no figures of their own: they are sums."""

    granted: int = 0
    limit: int | None = None
    holds: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Process, amount and month of each request that is running on credit."""
    usage: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Cost, whole and month of each request that ran."""
    late: int = 0
    """What was charged after its hold had been reaped: credits may be that far below zero."""
    beyond: dict[int, int] = field(default_factory=dict)
    """By month, what was charged without having been held in it: reaped before, or held in the month before."""
    bound: dict[int, float] = field(default_factory=dict)
    """By month, the highest limit under which something was held."""

    @property
    def held(self) -> int:
        return sum(amount for _, amount, _ in self.holds.values())

    @property
    def credits(self) -> int:
        return self.granted - self.held - sum(cost for cost, _, _ in self.usage.values())

    def spent(self, month: int) -> int:
        """Of a month: what was charged in it, and what was held in it and is held still."""
        charged = sum(cost for cost, _, charged_in in self.usage.values() if charged_in == month)
        return charged + sum(amount for _, amount, held_in in self.holds.values() if held_in == month)

    def hold(self, ask: Hold, now: int) -> bool:
        """Whether it is granted."""
        month, limit = accounts.month(now), ask.limit if self.limit is None else self.limit
        if not self.fits(ask, now):
            return False
        self.holds[ask.id] = (ask.process, ask.amount, month)
        self.bound[month] = max(self.bound.get(month, 0), float("inf") if limit is None else limit)
        return True

    def fits(self, ask: Hold, now: int) -> bool:
        limit = ask.limit if self.limit is None else self.limit
        within = limit is None or self.spent(accounts.month(now)) + ask.amount <= limit
        return ask.amount <= self.credits and within

    def charge(self, closing: Closing, now: int) -> None:
        month = accounts.month(now)
        _, _, held_in = self.holds.pop(closing.id, ("", 0, 0)) if closing.held else ("", 0, 0)
        usage = closing.usage
        if usage is None or closing.id in self.usage:
            return
        self.usage[closing.id] = (usage.cost, int(usage.whole), month)
        if held_in == 0:
            self.late += usage.cost
        if held_in != month:
            self.beyond[month] = self.beyond.get(month, 0) + usage.cost


class Books:
    """All purses, claims, places and processes."""

    def __init__(self) -> None:
        self.purses: dict[str, Purse] = {}
        self.claims: dict[bytes, Kept] = {}
        self.places: dict[tuple[str, str], int] = {}
        """How many requests of a workspace run, by process and workspace."""
        self.alive: dict[str, int] = {}
        """When each process was last heard of."""

    def running(self, workspace: str) -> int:
        return sum(taken for (_, of), taken in self.places.items() if of == workspace)

    def enter(self, process: str, workspace: str) -> None:
        self.places[process, workspace] = self.places.get((process, workspace), 0) + 1

    def leave(self, process: str, workspace: str) -> None:
        """None that was reaped is given back twice."""
        left = self.places.pop((process, workspace), 0) - 1
        if left > 0:
            self.places[process, workspace] = left

    def recount(self, process: str, known: Mapping[str, int]) -> None:
        """A process has as many places as it knows of, also where it was reaped meanwhile."""
        self.places = {place: taken for place, taken in self.places.items() if place[0] != process}
        self.places |= {(process, workspace): taken for workspace, taken in known.items()}

    def claim(self, ask: Claim, now: int) -> Claimed:
        found = self.claims.get(ask.id)
        if found is None or (found.answer is not None and found.expires_at <= now):
            self.claims[ask.id] = Kept(ask.owner, ask.process, ask.digest, ask.expires_at)
            return Claimed(True)
        if found.digest != ask.digest:
            return Claimed(False, same=False)
        return Claimed(False, answer=found.answer)

    def close(self, workspace: str, closing: Closing, now: int) -> None:
        self.purses[workspace].charge(closing, now)
        found = self.claims.get(closing.claim or b"")
        if found is None or found.owner != closing.id or found.answer is not None:
            return
        if closing.answer is None:
            del self.claims[closing.claim or b""]
        else:
            found.answer, found.expires_at = closing.answer, closing.expires_at

    def beat(self, process: str, now: int) -> None:
        """It lives; of those that do not, nothing stays."""
        self.alive[process] = now
        self.alive = {name: seen for name, seen in self.alive.items() if seen > now - processes.SILENCE}
        self.reap(self.holders() - self.alive.keys())

    def holders(self) -> set[str]:
        held = {process for purse in self.purses.values() for process, _, _ in purse.holds.values()}
        claimed = {kept.process for kept in self.claims.values() if kept.answer is None}
        return held | claimed | {process for process, _ in self.places}

    def reap(self, dead: Iterable[str]) -> None:
        gone = set(dead)
        for purse in self.purses.values():
            purse.holds = {id: hold for id, hold in purse.holds.items() if hold[0] not in gone}
        self.claims = {
            id: kept for id, kept in self.claims.items() if kept.answer is not None or kept.process not in gone
        }
        self.places = {place: taken for place, taken in self.places.items() if place[0] not in gone}

    def bury(self, process: str) -> None:
        """It ends in order."""
        self.reap([process])
        self.alive.pop(process, None)
