"""The gateway that `make run` serves, by config/conch.toml as it is shipped, and what the examples need around them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.sdk.clients import EXAMPLES, SDK
from tests.sdk.outside import Outside, outside


@pytest.fixture(scope="session")
def conch(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway by the configuration that is shipped, on a free port, with a store of its own."""
    gateway = Conch(tmp_path_factory.mktemp("shipped"), triton.url, grpc=triton.grpc_url)
    gateway.config = ROOT / "config" / "conch.toml"
    variables = {
        "CONCH_STORE__URL": f"sqlite:{gateway.store}",
        "CONCH_SERVER__PORT": "0",
        "CONCH_UPSTREAMS__LOCAL__URLS": triton.url,
        "CONCH_UPSTREAMS__LOCAL__GRPC": triton.grpc_url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        gateway.workspace("acme")
        with gateway.running(**variables):
            yield gateway


@pytest.fixture
def witness() -> Iterator[Outside]:
    """What this test's example asks of the rest of the world."""
    with outside() as server:
        yield server


@pytest.fixture
def environment(conch: Conch, key: str, witness: Outside, tmp_path: Path) -> dict[str, str]:
    """What an example is given: the two variables that every page begins with, and no way out."""
    return {
        "OPENAI_BASE_URL": f"{conch.url}/v1",
        "OPENAI_API_KEY": key,
        "PATH": f"{SDK}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **witness.variables(),
    }


@pytest.fixture(scope="session")
def recording(conch: Conch, key: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The speech that the examples transcribe: what the one for curl makes."""
    folder = tmp_path_factory.mktemp("recording")
    given = {**os.environ, "OPENAI_BASE_URL": f"{conch.url}/v1", "OPENAI_API_KEY": key}
    subprocess.run(["/bin/sh", EXAMPLES / "curl" / "speech.sh"], cwd=folder, env=given, check=True, timeout=60)
    return (folder / "train.mp3").read_bytes()
