"""docs/fuzzing.md's table of what each operation answered, written from its last run."""

import re
from collections.abc import Mapping
from typing import Any

from tests.gateway import ROOT

PAGE = ROOT / "docs" / "fuzzing.md"
BEGIN, END = '<!-- cases: written by make fuzz ARGS="api --write" -->\n', "<!-- end of cases -->"
HEAD = ["operation", "cases, of which drawn", "answers", "slowest"]


def write(done: Mapping[str, dict[str, Any]]) -> None:
    """Put the table between its marks."""
    text = PAGE.read_text()
    assert BEGIN in text, f"{PAGE} lacks the mark {BEGIN!r}"
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    PAGE.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{_table(done)}\n{END}", text, flags=re.DOTALL))


def _table(done: Mapping[str, dict[str, Any]]) -> str:
    rows = [HEAD, ["---", "--:", "---", "--:"]]
    for id, each in done.items():
        answers = ", ".join(f"{number:,} × {status}" for status, number in each["statuses"].items())
        drawn = each["phases"].get("fuzzing") or each["phases"].get("stateful", 0)
        rows.append([f"`{id}`", f"{each['cases']:,} · {drawn:,}", answers, f"{each['slowest_ms']:,} ms"])
    total = sum(each["cases"] for each in done.values())
    rows.append([f"{len(done)} in all", f"{total:,}", "", ""])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
