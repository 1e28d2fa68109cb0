"""`make run` and the Triton under it: its key file, ports that are taken, and a server that ends."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from config import load
from scripts import run
from scripts.triton import Triton, TritonError


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's run keeps its key."""
    path = tmp_path / "dev.key"
    monkeypatch.setattr(run, "KEY_FILE", path)
    return path


def test_a_key_file_that_others_could_read_is_made_anew(key_file: Path) -> None:
    key_file.write_text("old\n")
    key_file.chmod(0o644)
    with key_file.open() as open_before:
        run._write_key("new")
        assert open_before.read() == "old\n", "whoever has the old file open does not get the new key"
    assert (key_file.stat().st_mode & 0o777, key_file.read_text()) == (0o600, "new\n")
    assert list(key_file.parent.iterdir()) == [key_file]


def test_a_key_is_kept_while_it_works(key_file: Path) -> None:
    config = load(variables={"CONCH_STORE__URL": f"sqlite:{key_file.parent / 'conch.db'}"})
    made = asyncio.run(run._key(config, ""))
    assert asyncio.run(run._key(config, made)) == made
    key_file.write_bytes(b"\xff\x00\xfe")
    assert asyncio.run(run._key(config, run._read_key())) != made


def test_a_folder_in_the_place_of_the_key_file(key_file: Path) -> None:
    assert run._read_key() == ""
    key_file.mkdir()
    with pytest.raises(run.Ended, match=r"dev.key is where the key goes, .*Is a directory"):
        run._read_key()


@pytest.mark.parametrize(("place", "name"), [(0, "HTTP"), (1, "gRPC"), (2, "metrics")])
def test_no_run_attaches_to_the_triton_of_another(triton: Triton, tmp_path: Path, place: int, name: str) -> None:
    ports = [0, 0, 0]
    ports[place] = triton.ports[place]
    second = Triton(tmp_path, http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], log=tmp_path / "log")
    with pytest.raises(TritonError, match=rf"^Port {ports[place]}, for Triton's {name}, .*in use"):
        second.start()
    assert second.process is None


def test_a_run_ends_with_its_triton() -> None:
    gateway = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    triton = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    try:
        with pytest.raises(run.Ended, match="Triton ended with status 3"):
            run._wait(gateway, triton)
        assert gateway.poll() is None
    finally:
        gateway.communicate("\n")
    assert run._wait(gateway, None) == 0
