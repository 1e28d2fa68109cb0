"""Whether a server's model may be asked: what its checks and its requests have said, and when to look again."""

from math import inf
from random import random
from typing import Literal

State = Literal["unverified", "serving", "trial", "ejected"]

MOST_FAILURES = 5
"""Failures in a row after which a server is left out. A refused connection needs no second one."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 30.0


class Health:
    """One state of four; `due` is when it is to be looked at before the regular time, a loop.time().

    `unverified`: its check has not passed. `serving`: requests go there. `ejected`: it failed, and is left alone for
    a time that doubles with each ejection in a row. `trial`: that time is over, its check has passed, and one request
    at a time goes there, of which the first decides.
    """

    __slots__ = ("_in_a_row", "_needs_trial", "due", "ejections", "failures", "state")

    def __init__(self) -> None:
        self.state: State = "unverified"
        self.failures = 0  # in a row
        self.ejections = 0  # ever
        self.due = inf
        self._in_a_row = 0
        self._needs_trial = False

    @property
    def may_serve(self) -> bool:
        """Whether any request may go there."""
        return self.state in ("serving", "trial")

    def verified(self, now: float) -> None:
        """Its check has passed."""
        if self.state == "ejected" and self._needs_trial:
            if now < self.due:
                return
            self.state = "trial"
        elif not self.may_serve:
            self.state = "serving"
            self.failures = self._in_a_row = 0
        self.due = inf

    def unverified(self, due: float = inf) -> None:
        """It does not have the model."""
        self.state = "unverified"
        self.failures = 0
        self.due = due
        self._needs_trial = False

    def succeeded(self) -> None:
        """A request was answered."""
        self.failures = 0
        if self.state == "trial":
            self.state = "serving"
            self._in_a_row = 0

    def failed(self, now: float, *, alone: bool) -> bool:
        """A request ended with an error of the server's. Returns whether that ejects it: not one that serves `alone`,
        since a model that fails for some is better than none."""
        self.failures += 1
        if self.state == "trial" or (self.state == "serving" and self.failures >= MOST_FAILURES and not alone):
            self._needs_trial = True
            self._eject(now)
            return True
        return False

    def refused(self, now: float) -> None:
        """No connection can be made: its next check decides."""
        if self.state != "ejected":
            self._needs_trial = False
            self._eject(now)

    def unreachable(self, now: float) -> None:
        """Its check got no connection."""
        self._needs_trial = False
        self._eject(now, counted=self.may_serve)

    def _eject(self, now: float, *, counted: bool = True) -> None:
        self.state = "ejected"
        self.failures = 0
        self.ejections += counted
        backoff = min(FIRST_BACKOFF * 2**self._in_a_row, LONGEST_BACKOFF)
        self._in_a_row = min(self._in_a_row + 1, 16)
        self.due = now + backoff * (0.5 + random())  # so that processes do not come all at once
