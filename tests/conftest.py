"""What the tests share: one real Triton and one gateway before it for the session, and the official SDK on both."""

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings
from openai import AsyncOpenAI, OpenAI

from scripts.triton import Triton
from tests.gateway import Conch
from tests.postgres_fixture import postgres
from tests.raw import Wire, quiet
from tests.receiver import receiver
from tests.stores import url
from tests.triton_fixture import triton

__all__ = ["postgres", "receiver", "triton", "url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What make test-sdk and make chaos say."""
    parser.addoption("--write", action="store_true", help="write what was seen into the pages instead of comparing")
    parser.addoption("--long", action="store_true", help="many clients and long silences: make chaos")


settings.register_profile("deep", max_examples=2000)  # by hand: pytest --hypothesis-profile deep tests/test_money.py


@pytest.fixture(scope="session")
def write(request: pytest.FixtureRequest) -> bool:
    """Whether the pages are to be written."""
    return bool(request.config.getoption("--write"))


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether it may take its time."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def conch(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway before the session's Triton, with the workspaces acme (enterprise) and other."""
    gateway = Conch(tmp_path_factory.mktemp("conch"), triton.url, grpc=triton.grpc_url)
    gateway.workspace("acme")
    gateway.workspace("other")
    with gateway.running():
        yield gateway


@pytest.fixture(scope="session")
def key(conch: Conch) -> str:
    """A workspace key of acme."""
    return conch.key("acme", "--name", "tests")


@pytest.fixture(scope="module")
def no_crash(conch: Conch, key: str) -> Iterator[None]:
    """For the tests of a module, by its `pytestmark`: after all of this, nothing is in the log that should not be."""
    yield
    quiet(conch, key)


@pytest.fixture
def wire(conch: Conch) -> Iterator[Wire]:
    """A connection to the gateway."""
    with Wire(conch.url) as connection:
        yield connection


@pytest.fixture(scope="session")
def client(conch: Conch, key: str) -> Iterator[OpenAI]:
    """The official SDK, which checks every answer against its own types."""
    with OpenAI(base_url=f"{conch.url}/v1", api_key=key, max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


@pytest.fixture(scope="session")
async def async_client(conch: Conch, key: str) -> AsyncIterator[AsyncOpenAI]:
    """The same, async."""
    base = f"{conch.url}/v1"
    async with AsyncOpenAI(base_url=base, api_key=key, max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk
