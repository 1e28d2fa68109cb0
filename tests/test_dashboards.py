"""What deploy/ gives Grafana and Prometheus: every metric and label in it is one that a gateway has."""

import json
import re
from pathlib import Path

from handlers.seeing.families import FAMILIES
from tests.gateway import ROOT

METRIC = re.compile(r"\b((?:conch|gen_ai|process)_[a-z_]+)(?:\{([^}]*)\})?")
LABELS = {
    *("endpoint", "method", "model", "status", "code", "reason", "outcome", "worker", "version", "commit", "python"),
    *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_type", "error_type"),
    *("job", "instance", "le"),  # Prometheus's own
}


def known() -> set[str]:
    """Every name that a scrape can have."""
    names = {name for name, family in FAMILIES.items() if family.kind != "histogram"}
    for name, family in FAMILIES.items():
        if family.kind == "histogram":
            names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")}
    return names


def check(expression: str) -> set[str]:
    """Asserts that its metrics and labels are known; returns the metrics."""
    found = {name for name, _ in METRIC.findall(expression)} - LABELS
    assert found <= known(), expression
    for _, selector in METRIC.findall(expression):
        assert {pair.partition("=")[0].rstrip("!~") for pair in re.findall(r'\w+!?=~?"', selector)} <= LABELS, selector
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= LABELS, expression
    return found


def test_the_dashboard_shows_what_there_is() -> None:
    board = json.loads((ROOT / "deploy/grafana/conch.json").read_text(encoding="utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    shown: set[str] = set()
    for panel in panels:
        for target in panel["targets"]:
            shown |= check(target["expr"])
    for variable in board["templating"]["list"][1:]:
        shown |= check(variable["query"]["query"].removeprefix("label_values("))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert FAMILIES.keys() - families == {"process_start_time_seconds"}, "every other metric has a place"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(panel["gridPos"][each] for each in "xywh") for panel in board["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells)), "panels lie over one another"
    assert max(x for x, _ in cells) == 23


def test_the_alerts_watch_what_there_is() -> None:
    text = (ROOT / "deploy/alerts/conch.yml").read_text(encoding="utf-8")
    expressions = [" ".join(each.split()) for each in re.findall(r"expr:(?: >-)?(.*?)\n        for:", text, re.DOTALL)]
    alerts = re.findall(r"alert: (\w+)", text)
    assert len(expressions) == len(alerts) == len(set(alerts))
    assert all(check(each) or each.startswith("up{") for each in expressions)
    documented = (ROOT / "docs/observing.md").read_text(encoding="utf-8")
    assert all(f"`{alert}`" in documented for alert in alerts)


def test_a_name_that_is_wrong_is_found() -> None:
    for wrong in ('conch_request_total{job="x"}', 'conch_requests_total{jobs="x"}', "sum by (modell) (conch_workers)"):
        try:
            check(wrong)
        except AssertionError:
            continue
        raise AssertionError(wrong)
    assert Path(ROOT / "deploy/grafana/conch.json").stat().st_size < 100_000
