"""The text that Prometheus scrapes (exposition format 0.0.4): the rows of all workers, added up."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import accumulate

from handlers.seeing.cells import Row
from handlers.seeing.families import FAMILIES, Family

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Series = Mapping[str, Iterable[float]]
"""The cells of each series, by its name."""


def added_up(rows: Iterable[tuple[Row, bool]]) -> dict[str, list[float]]:
    """The series of all rows, each added up; of a row whose process does not live, no gauges."""
    totals: dict[str, list[float]] = {}
    for row, lives in rows:
        for name, index, size in row:
            if lives or _family(name).kind != "gauge":
                cells = row.cells[index : index + size]
                known = totals.get(name)
                totals[name] = list(cells) if known is None else [a + b for a, b in zip(known, cells, strict=True)]
    return totals


def text(found: Series) -> bytes:
    """All of it, the families in the order of families.py."""
    by_family: dict[str, list[str]] = defaultdict(list)
    for name, cells in found.items():
        family = _family(name)
        lines = by_family[family.name]
        if family.kind == "histogram":
            lines += _histogram(family, name, list(cells))
        else:
            lines += (f"{name} {_number(value)}" for value in cells)
    told = []
    for family in FAMILIES.values():
        if lines := by_family.get(family.name, []):
            told += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *lines]
    return "\n".join([*told, ""]).encode()


def _histogram(family: Family, name: str, cells: list[float]) -> list[str]:
    *counts, total = cells
    labels = name[len(family.name) + 1 : -1]
    within = f"{labels}," if labels else ""
    around = f"{{{labels}}}" if labels else ""
    ends = [*map(_number, family.bounds), "+Inf"]
    upto = list(accumulate(counts))
    return [
        *(
            f'{family.name}_bucket{{{within}le="{end}"}} {_number(count)}'
            for end, count in zip(ends, upto, strict=True)
        ),
        f"{family.name}_sum{around} {_number(total)}",
        f"{family.name}_count{around} {_number(upto[-1])}",
    ]


def _family(name: str) -> Family:
    return FAMILIES[name.partition("{")[0]]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
