"""The page of webhooks, in a real Chromium: made, tried, rotated, disabled and deleted, before a real receiver."""

import re

from aiohttp import web
from playwright.async_api import Locator, expect

from handlers.ops.dashboard import FOLDER
from handlers.ops.webhooks.events import EVERY, OF_WORKSPACE
from tests.dashboard.eyes import Eyes
from tests.dashboard.test_dashboard_pages import asked
from tests.gateway import Conch
from tests.receiver import Receiver, verified

SECRET = re.compile(r"whsec_[0-9a-f]{64}")


def table(eyes: Eyes, name: str) -> Locator:
    return eyes.page.get_by_role("table", name=name)


def endpoint(eyes: Eyes, url: str) -> Locator:
    """Its row."""
    return table(eyes, "Webhooks").get_by_role("row").filter(has_text=url)


async def secret(eyes: Eyes) -> str:
    """What the dialog shows this once."""
    shown = asked(eyes).locator(".secret code")
    await expect(shown).to_have_text(SECRET)
    text = await shown.inner_text()
    await asked(eyes).get_by_role("button", name="I have copied it").click()
    await expect(asked(eyes)).to_have_count(0)
    await eyes.settled()
    return text


async def toast(eyes: Eyes, words: str) -> None:
    await expect(eyes.page.locator(".toast").last).to_contain_text(words)
    await eyes.settled()


async def test_a_webhook_from_first_to_last(eyes: Eyes, receiver: Receiver, shop: Conch) -> None:
    page, url = eyes.page, receiver.url()
    await eyes.go("Webhooks")
    await page.get_by_role("button", name="Create webhook").click()
    await asked(eyes).get_by_label("URL").fill("ftp://nowhere")
    await asked(eyes).get_by_label("It is told of").select_option("acme")
    await expect(asked(eyes).get_by_label("A model is gone")).to_be_hidden()
    await asked(eyes).get_by_label("A key ends soon").uncheck()
    await asked(eyes).get_by_label("Description").fill("the till")
    await eyes.fine("create-webhook")
    eyes.expected = ("400", "409")
    await asked(eyes).get_by_role("button", name="Create webhook").click()
    await expect(asked(eyes).get_by_role("alert")).to_contain_text("Invalid 'url'")
    await asked(eyes).get_by_label("URL").fill(url)
    await asked(eyes).get_by_role("button", name="Create webhook").click()
    first = await secret(eyes)
    made = endpoint(eyes, url)
    for words in ("the till", "acme", "credits.low", "Active"):
        await expect(made).to_contain_text(words)
    (kept,) = [each for each in shop.command("webhooks", "list") if each["url"] == url]
    assert (kept["events"], kept["workspace"]) == (["credits.low"], "acme")

    await made.get_by_role("button", name="Test").click()
    await toast(eyes, "It answered with status 204")
    assert verified(first, receiver.seen[-1])
    assert receiver.seen[-1].event["type"] == "webhook.test"
    sent = table(eyes, "Deliveries").get_by_role("row").filter(has_text=url)
    await expect(sent).to_contain_text("Delivered")
    await expect(sent).to_contain_text("Status 204")
    await expect(sent).to_contain_text("1 attempt")
    receiver.answer = lambda _: web.Response(status=503)
    await made.get_by_role("button", name="Test").click()
    await toast(eyes, "It did not arrive: It answered with status 503.")
    await page.get_by_role("group", name="Deliveries").get_by_role("button", name="Given up").click()
    await eyes.settled()
    await expect(sent).to_have_count(1)
    await expect(sent).to_contain_text("It answered with status 503.")
    await eyes.fine()

    receiver.answer = lambda _: web.Response(status=200)
    await sent.get_by_role("button", name="Send webhook.test").click()
    seen = await receiver.until(lambda seen: len(seen) == 3)
    assert seen[1].body == seen[2].body, "the same event"
    await page.get_by_role("group", name="Deliveries").get_by_role("button", name="Delivered").click()

    async def arrived() -> bool:
        await page.get_by_role("button", name="Refresh").click()
        await eyes.settled()
        return await sent.count() == 2

    while not await arrived():
        pass
    await made.get_by_role("button", name="Rotate").click()
    await asked(eyes).get_by_role("button", name="Rotate").click()
    second = await secret(eyes)
    await expect(made).to_contain_text("Two secrets")
    await made.get_by_role("button", name="Test").click()
    await toast(eyes, "It answered with status 200")
    assert verified(first, receiver.seen[-1])
    assert verified(second, receiver.seen[-1])

    await made.get_by_role("button", name="Disable").click()
    await expect(made).to_contain_text("Disabled")
    await expect(made.get_by_role("button", name="Test")).to_have_count(0)
    await sent.first.get_by_role("button", name="Send webhook.test").click()
    await expect(page.get_by_role("alert")).to_contain_text("is for a webhook that is disabled: enable it first")
    await made.get_by_role("button", name="Enable").click()
    await expect(made).to_contain_text("Two secrets")
    await made.get_by_role("button", name="Delete").click()
    await asked(eyes).get_by_role("button", name="Delete webhook").click()
    await expect(made).to_have_count(0)
    assert url not in [each["url"] for each in shop.command("webhooks", "list")]


def test_the_page_knows_every_event() -> None:
    text = (FOLDER / "pages" / "webhooks.js").read_text(encoding="utf-8")
    found = {
        name: re.findall(r'\["([a-z.]+)", "', line)
        for name, line in re.findall(r"^const (OF_WORKSPACE|OF_GATEWAY) = (.*);$", text, re.MULTILINE)
    }
    assert found["OF_WORKSPACE"] == [*OF_WORKSPACE]
    assert sorted(found["OF_WORKSPACE"] + found["OF_GATEWAY"]) == sorted(EVERY)
