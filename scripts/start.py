"""What dist/conch runs: app.py, on a sys.path whose second layer may still be on its way (scripts/launcher.c).

An import of what lies there waits until it has been unpacked.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import app

IMPORTS = Path(__file__).parent
HOME = IMPORTS.parents[1]
SECOND = HOME / "second"


class Second:
    """The last of sys.meta_path: finds the modules that second.txt names, once they are there."""

    def __init__(self) -> None:
        self._names = frozenset((IMPORTS / "second.txt").read_text().split())

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """As a finder's of importlib. Raises ImportError where the layer cannot be unpacked."""
        if name not in self._names:
            return None
        if not SECOND.exists():
            launcher = sys._xoptions["launcher"]
            pid = os.posix_spawn(launcher, ["conch-unpack", str(HOME.parent)], {})
            if os.waitpid(pid, 0)[1]:
                raise ImportError(f"{name} cannot be unpacked from {launcher}.", name=name)
        return PathFinder.find_spec(name, [str(SECOND)])


if __name__ == "__main__":
    sys.meta_path.append(Second())
    app.main()
