"""A Chromium, and a gateway with a month of business for it to look at."""

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from scripts.triton import Triton
from tests.dashboard.eyes import Eyes, Look
from tests.dashboard.shop import CONFIG, TOKEN, open_shop
from tests.gateway import ROOT, Conch


@pytest.fixture(scope="session")
async def stocked(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Conch:
    """A gateway's files, before it runs."""
    conch = Conch(tmp_path_factory.mktemp("dashboard"), triton.url, CONFIG, grpc=triton.grpc_url)
    await open_shop(conch)
    return conch


@pytest.fixture(scope="session")
def shop(stocked: Conch) -> Iterator[Conch]:
    """The gateway, with the dashboard."""
    with stocked.running(CONCH_ADMIN_TOKEN=TOKEN):
        yield stocked


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the browser's microphone hears; a test writes it before it records."""
    return tmp_path_factory.mktemp("microphone") / "said.wav"


@pytest.fixture(scope="session")
async def browser(microphone: Path) -> AsyncIterator[Browser]:
    """The system's Chromium, without a window, with a microphone that hears a file."""
    found = shutil.which("chromium")
    assert found, "the dashboard's tests need Chromium: python3 scripts/setup.py test installs it"
    heard = f"--use-file-for-fake-audio-capture={microphone}%noloop"
    asked = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", heard]
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=found, args=asked)
        yield chromium
        await chromium.close()


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where the screenshots go: `make screenshots` says docs/screenshots."""
    folder = Path(os.environ.get("SCREENSHOTS") or ROOT / "var" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(params=["desktop", "dark", "phone"])
def look(request: pytest.FixtureRequest) -> Look:
    """How the page is looked at."""
    name: Look = request.param
    return name


@pytest.fixture
async def eyes(browser: Browser, shop: Conch, pictures: Path) -> AsyncIterator[Eyes]:
    """A signed-in page on a desktop; nothing may be wrong with it at the end."""
    async with Eyes.opened(browser, shop.url, pictures, "desktop") as opened:
        yield opened


@pytest.fixture
async def eyes_as(browser: Browser, shop: Conch, pictures: Path, look: Look) -> AsyncIterator[Eyes]:
    """The same, on a desktop, in the dark, on a phone."""
    async with Eyes.opened(browser, shop.url, pictures, look) as opened:
        yield opened
