"""What dist/conch runs: app.py, on a sys.path whose second layer may still be on its way (scripts/launcher.c).

An import of what lies there waits until it has been unpacked.
"""

import contextlib
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import app

IMPORTS = Path(__file__).parent
HOME = IMPORTS.parents[1]
SECOND = HOME / "second"


class NotUnpackedError(ImportError):
    """The second layer is not there, and cannot be made; the message says what to do."""


class Second:
    """The last of sys.meta_path: finds the modules that second.txt names, once they are there."""

    def __init__(self) -> None:
        self._names = frozenset((IMPORTS / "second.txt").read_text().split())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As a finder's of importlib. Raises NotUnpackedError."""
        if name not in self._names:
            return None
        if not SECOND.exists():
            _unpack(sys._xoptions["launcher"])
        return PathFinder.find_spec(name, [str(SECOND)])


def _unpack(launcher: str) -> None:
    """Have the launcher unpack the second layer; returns when it is there. Raises NotUnpackedError."""
    try:
        pid = os.posix_spawn(launcher, ["conch-unpack", str(HOME.parent)], {})
    except OSError as error:
        why = f"The rest of the libraries is in {launcher}, which cannot run ({error.strerror}): put it back."
        raise NotUnpackedError(why) from error
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored: it has ended, and nobody is told how
        os.waitpid(pid, 0)
    if not SECOND.exists():
        why = f"{launcher} did not unpack the rest of the libraries into {HOME}: start it anew, if it was replaced."
        raise NotUnpackedError(why)


if __name__ == "__main__":
    sys.meta_path.append(Second())
    try:
        app.main()
    except NotUnpackedError as error:
        sys.exit(f"conch: {error}")
