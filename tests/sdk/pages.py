"""The pages about clients: a page's head is written by hand, the examples and the table below it come from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.sdk.clients import CLIENTS, FEATURES, ROOT, Client

LANGUAGES = {".py": "python", ".mjs": "js", ".sh": "sh"}
TABLES = (ROOT / "README.md", ROOT / "docs" / "clients.md")
BEGIN, END = "<!-- clients: written by make test-sdk ARGS=--write -->\n", "<!-- end of clients -->"

Works = Mapping[tuple[str, str], bool]


def path(client: Client) -> Path:
    """Where a client's page is."""
    return ROOT / "docs" / "clients" / f"{client.name}.md"


def page(client: Client) -> str:
    """A client's page as it is to be: its own head, then every example."""
    head = path(client).read_text().split("\n## ")[0].rstrip()
    shown = [
        f"## {FEATURES[file.stem]}\n\n```{LANGUAGES[file.suffix]}\n{file.read_text()}```\n"
        for file in client.examples()
    ]
    return "\n\n".join([head, "\n".join(shown)])


def table(works: Works) -> str:
    """What the run has found: a row for each client, a column for each feature."""
    rows = [["", *(title.lower() for title in FEATURES.values())], ["---", *[":-:"] * len(FEATURES)]]
    for client in CLIENTS:
        cells = ({None: "–", True: "✓", False: "**no**"}[works.get((client.name, feature))] for feature in FEATURES)
        rows.append([f"{client.title} {client.versions()}".strip(), *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_table(text: str, works: Works) -> str:
    """A page with what the run has found between its marks."""
    assert BEGIN in text, f"a page lacks the mark {BEGIN!r}"
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{table(works)}\n{END}", text, flags=re.DOTALL
    )
