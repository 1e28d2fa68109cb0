"""docs/configuration.md: every setting is in it, as the settings are now."""

import inspect
import tomllib

import msgspec
import pytest

import config
from config import Config, sections
from scripts import settings
from tests.gateway import ROOT


def test_the_page_is_of_these_settings() -> None:
    assert settings.PAGE.read_text() == settings.page(), "docs/configuration.md is stale: make docs"


def test_every_setting_is_in_it() -> None:
    page = settings.PAGE.read_text()
    tables = settings.tables()
    assert len(tables) > 15
    for table in tables:
        block = page.split(f"\n## {(table.__doc__ or '').partition(':')[0]}\n")[1].split("\n## ")[0]
        for field in msgspec.structs.fields(table):
            assert f"\n| `{field.encode_name}` | " in block, (table.__name__, field.name)
    for name in Config.__struct_fields__:
        assert f"\n## [{name}" in page or f"\n## [[{name}" in page, name


def test_a_default_on_the_page_is_one_that_can_be_written() -> None:
    """Back through the file: what the page shows as the default gives that default."""
    page = settings.PAGE.read_text()
    block = page.split("\n## [server]\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in block.splitlines() if line.startswith("| `")]
    written = "\n".join(f"{key.strip('|` ')} = {default.strip('`')}" for key, _, default, *_ in rows if default)
    server = msgspec.convert(tomllib.loads(written), config.Server, dec_hook=sections.read)
    assert server == config.Server()
    assert len(written.splitlines()) >= 10


def test_a_setting_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "config" / "sections.py").read_text()
    bare = source.replace('host: str = "127.0.0.1"  # ', 'host: str = "127.0.0.1"\n    # ')
    assert settings.read_meanings(source)["Server", "host"]
    assert not settings.read_meanings(bare)["Server", "host"]
    monkeypatch.setattr(inspect, "getsource", lambda _: bare)
    with pytest.raises(SystemExit, match=r"Server\.host has no meaning"):
        settings.page()
