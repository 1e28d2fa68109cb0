"""`server.workers`: processes that share a port, and the parent that starts and replaces them and passes signals on."""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from handlers.ops.listening import Listening

log = logging.getLogger("conch")

Work: TypeAlias = Callable[[int, list[socket.socket], Callable[[], None]], None]
"""Serves, in the place of this number, on these sockets until it is told to end; calls the last when it has begun.
Unblocks signals itself."""

PAUSES = (0.0, 0.1, 0.5, 2.0, 10.0)
"""Seconds before a worker's successor starts, by how many in a row have failed; the last from then on. When as many
as there are entries have failed and no other worker serves, it is over."""
YOUNG = 5.0
"""Seconds: a worker that ends before it is this old has failed."""

STARTED = signal.SIGRTMIN  # from a worker to its parent; a real-time signal, of which none is lost in another
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AWAITED = (*PASSED_ON, signal.SIGCHLD, STARTED)
SET_PDEATHSIG = 1  # linux/prctl.h


class WorkersFailed(ValueError):
    """There is no worker left, and none that starts lives: one sentence."""


class Place:
    """One of the workers, and after it those that replace it, on the same sockets.

    The parent keeps these too: who connects while a worker is being replaced waits for the next, and is not refused.
    """

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.pid: int | None = None
        self.serves = False
        self.since = 0.0  # when its process began, or may begin
        self.failures = 0  # in a row


def processors() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0))


def run(count: int, listening: Listening, work: Work, started: Callable[[], None], again: Callable[[], bool]) -> None:
    """Have `count` processes work until SIGTERM or SIGINT: each on a socket of its own at the addresses of
    `listening`, which is closed; or all on the very sockets, where those were handed over.

    `started` is called once, when each of them serves; `again` at SIGHUP: whether the workers are to hear of it.
    Raises WorkersFailed. Signals are not handled but waited for, and workers are born with them blocked, so that none
    is lost in between.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it was ignored, nobody would hear of a worker's end
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    gc.collect()
    gc.freeze()  # a collection in a worker would write to pages that all of them share
    if listening.handed:
        held = listening.all
        places = [Place(n, [each.dup() for each in held]) for n in range(count)]
    else:
        held = [_stand_in(each) for each in listening.all]
        places = [Place(n, [_bound(each.family, each.getsockname()) for each in held]) for n in range(count)]
    workers = Workers(held, places, work, started, listening.stop, again)
    try:
        workers.run()
    finally:
        workers.kill()


class Workers:
    """The parent's view of them."""

    def __init__(
        self,
        held: list[socket.socket],
        places: list[Place],
        work: Work,
        started: Callable[[], None],
        stop: Callable[[list[socket.socket]], None],
        again: Callable[[], bool],
    ) -> None:
        self._again = again
        self._held, self._places, self._work, self._started, self._stop = held, places, work, started, stop
        self._all_served = self._stopping = False

    def run(self) -> None:
        """Until all have ended because they were told to. Raises WorkersFailed."""
        while not self._stopping or any(place.pid for place in self._places):
            due = [place for place in self._places if place.pid is None and not self._stopping]
            for place in due:
                if place.since <= time.monotonic():
                    self._begin(place)
            wait = min((place.since for place in due if place.pid is None), default=None)
            told = _next_signal(wait)
            if told is None:
                continue
            if told.si_signo == STARTED:
                self._note_start(told.si_pid)
            elif told.si_signo == signal.SIGCHLD:
                self._note_ends()
            else:
                self._pass_on(told.si_signo)

    def kill(self) -> None:
        """End those that are left."""
        for place in self._places:
            if place.pid is not None:
                os.kill(place.pid, signal.SIGKILL)

    def _close(self, keep: Place | None = None) -> None:
        for each in self._held + [each for place in self._places if place is not keep for each in place.sockets]:
            each.close()

    def _begin(self, place: Place) -> None:
        place.since, place.serves = time.monotonic(), False
        parent = os.getpid()
        place.pid = os.fork()
        if not place.pid:
            self._close(keep=place)
            _live(parent, place, self._work)

    def _note_start(self, pid: int) -> None:
        for place in self._places:
            if place.pid == pid:
                place.serves = True
        if not self._all_served and all(place.serves for place in self._places):
            self._all_served = True
            self._started()

    def _note_ends(self) -> None:
        """One SIGCHLD may stand for several ends."""
        for place in self._places:
            if place.pid is None:
                continue
            ended, status = os.waitpid(place.pid, os.WNOHANG)
            if ended:
                self._note_end(place, os.waitstatus_to_exitcode(status))

    def _note_end(self, place: Place, status: int) -> None:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        pid, place.pid, place.serves = place.pid, None, False
        if self._stopping:
            if status:
                log.warning("worker %d %s while it was to stop", pid, how)
            return
        now = time.monotonic()
        place.failures = place.failures + 1 if now < place.since + YOUNG else 0
        if place.failures >= len(PAUSES) and not any(each.serves for each in self._places):
            raise WorkersFailed(f"workers do not stay alive: the last {how}; what it logged says why.")
        pause = PAUSES[min(max(place.failures, 1), len(PAUSES)) - 1]
        place.since = now + pause
        if pause:
            self._stop(place.sockets)  # until then the others take what comes
        log.error("worker %d %s; another takes its place%s", pid, how, f" in {pause:g} s" if pause else "")

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGHUP and not self._again():
            return
        if number != signal.SIGHUP and not self._stopping:
            self._stopping = True
            self._close()  # as a single process does, so that a successor may begin meanwhile
        for place in self._places:
            if place.pid is not None:
                os.kill(place.pid, number)


def _next_signal(until: float | None) -> signal.struct_siginfo | None:
    """The next of AWAITED; None if none comes `until` then, a monotonic time."""
    if until is None:
        return signal.sigwaitinfo(AWAITED)
    return signal.sigtimedwait(AWAITED, max(0.0, until - time.monotonic()))


def _live(parent: int, place: Place, work: Work) -> NoReturn:
    """A worker's life, from its birth."""
    status = 1
    try:
        if ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL):
            raise OSError("the kernel does not bind a worker's life to its parent's")
        if os.getppid() != parent:
            sys.exit()  # it has died meanwhile
        os.setsid()  # Ctrl-C reaches the parent alone, which passes it on
        work(place.number, place.sockets, lambda: os.kill(parent, STARTED))
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        log.exception("a worker failed")
    finally:
        os._exit(status)


def _stand_in(listening: socket.socket) -> socket.socket:
    """A socket that holds the address of this one for the workers, and never listens; `listening` is closed.

    With SO_REUSEPORT alone two gateways would share a port unnoticed. So its address was first taken without, and is
    now held without SO_REUSEADDR: whoever does not ask to share it is refused.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held = _bound(listening.family, listening.getsockname())
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    listening.close()
    return held


def _bound(family: int, address: Any) -> socket.socket:
    """A socket at an address that others share, which does not listen yet."""
    made = socket.socket(family, socket.SOCK_STREAM)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # the former because of connections of a gateway before
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind(address)
    return made
