"""A page in a real Chromium that remembers all that goes wrong on it: errors, refused content, what axe finds."""

import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import axe_playwright_python
from PIL import Image
from playwright.async_api import Browser, ConsoleMessage, Page, Response, expect

from tests.dashboard.shop import TOKEN

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RUN_AXE = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => [id, ...nodes.map((node) => node.html + node.failureSummary)]);
}"""
WIDTH = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
Look = Literal["desktop", "dark", "phone"]
LOOKS: dict[Look, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "color_scheme": "light", "device_scale_factor": 2},
}


class Eyes:
    """`page` on the dashboard at `url`. `expected`: parts of messages that a test provokes."""

    def __init__(self, page: Page, url: str, pictures: Path, look: Look) -> None:
        self.page, self.url, self.look = page, url, look
        self.wrong: list[str] = []
        self.expected: tuple[str, ...] = ()
        self._pictures = pictures
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        page.on("response", self._response)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, browser: Browser, url: str, pictures: Path, look: Look) -> AsyncIterator["Eyes"]:
        """Signed in, on the first page; at the end nothing may have gone wrong."""
        async with await browser.new_context(**LOOKS[look], reduced_motion="reduce") as context:
            context.set_default_timeout(15_000)
            eyes = cls(await context.new_page(), url, pictures, look)
            await eyes.sign_in()
            yield eyes
            assert [said for said in eyes.wrong if not any(part in said for part in eyes.expected)] == []

    async def sign_in(self, token: str = TOKEN) -> None:
        """With the form, as an operator does."""
        await self.page.goto(f"{self.url}/dashboard")
        await self.page.get_by_label("Admin token").fill(token)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("heading", level=1, name="Deployments").wait_for()

    async def go(self, name: str) -> None:
        """To a page, by its link; until it has all that it shows."""
        await self.page.get_by_role("navigation").get_by_role("link", name=name).click()
        await self.page.get_by_role("heading", level=1, name=name).wait_for()
        await self.settled()

    async def settled(self) -> None:
        """Nothing is still being fetched."""
        await expect(self.page.locator("[aria-busy=true]")).to_have_count(0)

    async def fine(self, name: str = "") -> None:
        """axe finds nothing, nothing is wider than the window; a picture of it is kept under `name`."""
        await self.page.evaluate(AXE)
        found = await self.page.evaluate(RUN_AXE)
        assert found == [], found
        scroll, client = await self.page.evaluate(WIDTH)
        assert scroll <= client, f"{scroll} px wide in a window of {client}"
        if name:
            shot = await self.page.screenshot(scale="css", animations="disabled")
            with Image.open(io.BytesIO(shot)) as picture:  # in 192 colours it has a third of the bytes
                picture.convert("RGB").quantize(192).save(self._pictures / f"{name}-{self.look}.png", optimize=True)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console: {message.text}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.status}: {response.url}")
