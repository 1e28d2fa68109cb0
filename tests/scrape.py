"""What a gateway's /metrics says, read by Prometheus's own parser."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer

TOKEN = "for prometheus alone"


def ask(conch: Conch, **headers: str) -> Answer:
    """One GET /metrics."""
    with Wire(conch.url) as wire:
        wire.request("GET", "/metrics", **headers)
        return wire.answer()


class Scrape:
    """One scrape with TOKEN: samples by name and labels, and the families that they are of."""

    def __init__(self, conch: Conch) -> None:
        answer = ask(conch, **bearer(TOKEN))
        assert answer.status == 200, answer
        self.text = answer.body.decode()
        self.families: list[Metric] = list(text_string_to_metric_families(self.text))
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families:
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self.samples, f"{key} comes twice"
                self.samples[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, whatever others they have."""
        return sum(value for _, value in self.found(name, **labels))

    def found(self, name: str, **labels: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """These samples, each with all of its labels."""
        for (known, pairs), value in self.samples.items():
            if known == name and labels.items() <= pairs:
                yield dict(pairs), value


def since(before: Scrape, after: Scrape, name: str, **labels: Any) -> float:
    """By how much a sum has grown."""
    return after(name, **labels) - before(name, **labels)
