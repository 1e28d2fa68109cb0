"""The audit of the locked packages: what the advisory database says decides, and being offline does not."""

from pathlib import Path

import pytest

from scripts import audit

SAFE = {"name": "safe", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": []}]}
UNKNOWN = {"name": "private", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("told", "printed", "status"),
    [
        (None, "audit: no advisory database can be reached; nothing was audited", 0),
        ([UNKNOWN], "audit: the package index has no advisories; nothing was audited", 0),
        ([SAFE], "audit: 1 locked packages, 0 with a known vulnerability", 0),
        ([SAFE, UNKNOWN], "audit: not audited, since the index does not know them: private", 0),
        ([SAFE, BAD, UNKNOWN], "audit: bad 2.0: PYSEC-2026-1, mended in 2.1", 1),
    ],
)
def test_what_is_told_and_how_it_ends(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    told: list[dict[str, object]] | None,
    printed: str,
    status: int,
) -> None:
    monkeypatch.setattr(audit, "ask", lambda lock: told if told is None or "dev" in lock.name else [])
    try:
        audit.main()
        ended = 0
    except SystemExit as end:
        ended = int(str(end.code))
    assert (capsys.readouterr().out.splitlines()[0], ended) == (printed, status)


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real program, which reaches nothing."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"jinja2==3.1.0 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert audit.ask(lock) is None


def test_a_broken_lock(tmp_path: Path) -> None:
    """Is not taken for being offline."""
    lock = tmp_path / "lock.txt"
    lock.write_text("not a requirement\n")
    with pytest.raises(SystemExit, match=r"audit: pip-audit failed: "):
        audit.ask(lock)
