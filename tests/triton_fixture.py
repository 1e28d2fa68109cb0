"""The real Triton that the tests run on: the models of models/ and the contract models, one server per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.triton import Triton

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A running Triton on free ports, its assistant at one token per millisecond; models can be loaded and unloaded."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    repositories = [ROOT / "models", ROOT / "tests" / "contracts"]
    with Triton(repositories, explicit=True, env={"ASSISTANT_PACE_MS": "1"}, log=log) as server:
        yield server
