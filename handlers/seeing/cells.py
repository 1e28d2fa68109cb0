"""Numbers in memory that every worker shares: each adds to a row of its own, and a scrape sums over the rows.

A worker that dies leaves its row to the one that takes its place, which goes on from there. So nothing is lost with a
process, and no counter ever goes back.
"""

import logging
import mmap
import os
from collections.abc import Iterator

log = logging.getLogger("conch")

CELL = 8  # bytes: a double, exact for whole numbers up to 2 ** 53
ROW = 1 << 20  # bytes of a row, and so many more for each model; what is never touched takes no memory
ROW_OF_MODEL = 1 << 16
USED, PID, FIRST = 0, 1, 2  # cells: up to where a row is in use, whose it is, and where its series begin
SPARE = 64  # cells at the end of a row for series that find no room: nobody reads them


class Cells:
    """Rows of memory for so many workers; made before they are forked."""

    def __init__(self, workers: int, models: int) -> None:
        size = ROW + models * ROW_OF_MODEL
        memory = memoryview(mmap.mmap(-1, workers * size))
        self.rows = [Row(memory[number * size : (number + 1) * size]) for number in range(workers)]


class Row:
    """Series of cells, each under a name. Only the process that has claimed a row writes to it, anybody reads.

    A series is: how many cells it has, how many bytes its name has, the name, the cells. `cells` is for whoever adds.
    """

    def __init__(self, memory: memoryview) -> None:
        self.cells = memory.cast("d")
        self._bytes = memory
        self._found: dict[str, int] = {}

    def claim(self) -> None:
        """This process is the one that writes here from now on."""
        self._found = {name: index for name, index, _ in self}
        self.cells[PID] = os.getpid()

    @property
    def pid(self) -> int:
        """Of the process that has claimed it last; 0 before any has."""
        return int(self.cells[PID])

    def place(self, name: str, size: int = 1) -> int:
        """Where the cells of a series begin, which may be there already: from a process before this one."""
        index = self._found.get(name)
        if index is None:
            index = self._found[name] = self._add(name, size)
        return index

    def _add(self, name: str, size: int) -> int:
        cells, text = self.cells, name.encode()
        start = int(cells[USED]) or FIRST
        index = start + 2 - -len(text) // CELL
        if index + size > len(cells) - SPARE:
            log.error("metrics: there is no room for %s: it is not counted", name)
            return len(cells) - SPARE
        cells[start], cells[start + 1] = size, len(text)
        self._bytes[(start + 2) * CELL : (start + 2) * CELL + len(text)] = text
        cells[USED] = index + size  # last: a process killed before this line has added nothing
        return index

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Each series: its name, where its cells begin, how many they are."""
        cells, at = self.cells, FIRST
        while at < cells[USED]:
            size, length = int(cells[at]), int(cells[at + 1])
            name = bytes(self._bytes[(at + 2) * CELL : (at + 2) * CELL + length])
            index = at + 2 - -length // CELL
            yield name.decode(), index, size
            at = index + size
