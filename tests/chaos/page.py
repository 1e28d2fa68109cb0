"""The README's table of what clients see while Triton fails, written from what the tests saw."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.endpoints import Endpoint
from tests.chaos.stand import Outcome

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- faults: written by make chaos ARGS=--write -->\n", "<!-- end of faults -->"
HEAD = ["Triton, or the way there", "whole answers", "streams", "over gRPC", "paid", "where there are two"]
SAME = "the same"

Outcomes = dict[tuple[str, Endpoint], Outcome]


@dataclass
class Results:
    """What was seen of each fault: over HTTP, over gRPC, and whether another server was asked instead."""

    http: Outcomes = field(default_factory=dict)
    grpc: Outcomes = field(default_factory=dict)
    instead: dict[str, bool] = field(default_factory=dict)


def table(results: Results) -> str:
    """A row for each fault."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for name, instead in results.instead.items():
        http = {endpoint: outcome for (fault, endpoint), outcome in results.http.items() if fault == name}
        grpc = {endpoint: outcome for (fault, endpoint), outcome in results.grpc.items() if fault == name}
        whole = _cell({endpoint: outcome.seen for endpoint, outcome in http.items() if endpoint.kind != "stream"})
        streams = _cell({endpoint: outcome.seen for endpoint, outcome in http.items() if endpoint.kind == "stream"})
        paid = _paid([*http.values(), *grpc.values()])
        told = [whole, SAME if streams == whole else streams, _others(http, grpc) if grpc else "–", paid]
        rows.append([name, *told, "the other answers" if instead else SAME])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_table(text: str, results: Results) -> str:
    """The page with the table between its marks."""
    assert BEGIN in text, f"the README lacks the mark {BEGIN!r}"
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    return re.sub(pattern, lambda _: f"{BEGIN}\n{table(results)}\n{END}", text, flags=re.DOTALL)


def _cell(seen: dict[Endpoint, str]) -> str:
    """What most endpoints answer, then those that answer otherwise, by name."""
    counted = sorted(set(seen.values()), key=list(seen.values()).count, reverse=True)
    usual, *others = counted or ["–"]
    named = [f"{', '.join(each.name for each in seen if seen[each] == other)}: {other}" for other in others]
    return "; ".join([usual, *named])


def _others(http: dict[Endpoint, Outcome], grpc: dict[Endpoint, Outcome]) -> str:
    """What is otherwise than over HTTP."""
    usual = {endpoint.name: outcome.seen for endpoint, outcome in http.items()}
    others = {endpoint: outcome.seen for endpoint, outcome in grpc.items() if outcome.seen != usual[endpoint.name]}
    return "; ".join([SAME, *(f"{endpoint.name} {seen}" for endpoint, seen in others.items())])


def _paid(outcomes: Iterable[Outcome]) -> str:
    paid = [outcome for outcome in outcomes if outcome.paid is not None]
    if not paid:
        return "nothing"
    return "all of it" if all(outcome.seen == "200" for outcome in paid) else "nothing; of a stream, what was told"
