"""The check that every gateway of the tests is put to at its end: it finds a key and a prompt."""

from pathlib import Path

import pytest

from tests.secrecy import check_files, check_log, prompts

SECRET = "rp_live_" + "0" * 64


def test_a_key_and_a_prompt_are_found_in_a_log() -> None:
    check_log(["req_1: upstream: Broken\n"])
    for told in (f"a key: {SECRET}", f"a secret: whsec_{'0' * 64}", next(iter(prompts()))):
        with pytest.raises(AssertionError, match="was logged"):
            check_log(["fine\n", told])


def test_a_key_is_found_in_a_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text(SECRET[:16])
    check_files(tmp_path / "x.db")
    (tmp_path / "x.db-wal").write_text(SECRET)
    with pytest.raises(AssertionError, match=r"x\.db-wal"):
        check_files(tmp_path / "x.db")
