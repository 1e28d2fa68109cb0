"""docs/clients/ shows the examples that are run, all of them and nothing else."""

import pytest

from tests.sdk import pages
from tests.sdk.clients import CLIENTS, EXAMPLES, HERE, ROOT, Client

pytestmark = pytest.mark.sdk


@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
def test_a_page_shows_the_examples(client: Client, write: bool) -> None:
    wanted = pages.page(client)
    if write:
        pages.path(client).write_text(wanted)
    assert pages.path(client).read_text() == wanted, "it differs from tests/sdk/examples; make test-sdk ARGS=--write"


def test_every_client_has_a_page_and_the_overview_leads_to_it() -> None:
    names = {client.name for client in CLIENTS}
    assert names == {path.stem for path in (ROOT / "docs" / "clients").iterdir()}
    assert names == {path.name for path in EXAMPLES.iterdir()}
    overview = (ROOT / "docs" / "clients.md").read_text()
    assert all(f"(clients/{name}.md)" in overview for name in names)


def test_the_lock_names_no_registry() -> None:
    assert "resolved" not in (HERE / "package-lock.json").read_text()
