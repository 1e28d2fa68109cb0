"""Every page of the dashboard, clicked through in a real Chromium on a running gateway with a real Triton."""

import asyncio
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, expect

from tests.dashboard.eyes import Eyes
from tests.dashboard.shop import HOSTILE, TOKEN
from tests.gateway import Conch

PAGES = ["Deployments", "API keys", "Usage", "Billing", "Playground", "Webhooks", "Connect"]
SECRET = re.compile(r"rp_live_[0-9a-f]{64}")


def asked(eyes: Eyes) -> Locator:
    """The dialog that is open."""
    return eyes.page.get_by_role("dialog")


async def row(eyes: Eyes, text: str) -> Locator:
    """The row of a table that has this text, once it is there."""
    found = eyes.page.get_by_role("row").filter(has_text=text)
    await expect(found).to_have_count(1)
    return found


async def switch(eyes: Eyes, workspace: str) -> None:
    await eyes.page.get_by_label("Workspace", exact=True).select_option(workspace)
    await eyes.settled()


async def test_every_page_in_every_look(eyes_as: Eyes) -> None:
    for name in PAGES:
        await eyes_as.go(name)
        assert await eyes_as.page.title() == f"{name} · Conch"
        await expect(eyes_as.page.get_by_role("heading", level=1)).to_be_focused()
        await eyes_as.fine("" if name == "Playground" else name.lower().replace(" ", "-"))


async def test_nobody_enters_without_the_token(browser: Browser, shop: Conch, pictures: Any) -> None:
    async with Eyes.opened(browser, shop.url, pictures, "desktop") as eyes:
        page = eyes.page
        await page.reload()
        await page.get_by_role("heading", level=1, name="Deployments").wait_for()  # the token outlives a reload
        await page.get_by_role("button", name="Sign out").click()
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0
        assert await page.evaluate("document.cookie") == ""
        await eyes.fine("sign-in")
        eyes.expected = ("401",)
        await page.get_by_label("Admin token").fill(TOKEN + "x")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("The admin token is not valid. Send it as")
        await expect(page.get_by_role("alert")).to_contain_text(re.compile("invalid_admin_token · request req_"))
        await eyes.fine()


async def test_a_token_that_is_good_no_more_leads_to_the_door(eyes: Eyes) -> None:
    await eyes.page.evaluate("sessionStorage.setItem('conch.token', 'another')")
    eyes.expected = ("401",)
    await eyes.page.get_by_role("link", name="Billing").click()
    await expect(eyes.page.get_by_role("alert").first).to_contain_text("The admin token is not valid")
    await expect(eyes.page.get_by_label("Admin token")).to_be_focused()
    assert await eyes.page.evaluate("sessionStorage.length") == 0


async def test_deployments_say_how_they_stand(eyes: Eyes) -> None:
    page = eyes.page
    await expect(page.get_by_text("5 of 6 deployments can be used.")).to_be_visible()
    down = page.get_by_role("article", name="llama-3.3-70b")
    await expect(down).to_contain_text("Not verified")
    await expect(down).to_contain_text("the model is not ready")
    partly = page.get_by_role("article", name="minilm")
    await expect(partly).to_contain_text("Partly up")
    await expect(partly).to_contain_text("http://127.0.0.1:9")
    up = page.get_by_role("article", name="assistant")
    await expect(up).to_contain_text("Verified")
    await expect(up).to_contain_text(re.compile(r"Latency p50[\d.,]+ m?s"))
    await up.get_by_text("Tensors").click()
    await expect(up).to_contain_text("text_input")


async def test_a_key_from_first_to_last(eyes: Eyes) -> None:
    page = eyes.page
    await eyes.go("API keys")
    await switch(eyes, "empty")
    await expect(page.get_by_text("No keys yet")).to_be_visible()
    await eyes.fine()
    await page.get_by_role("button", name="Create key").first.click()
    await asked(eyes).get_by_label("Name").fill("robot")
    await asked(eyes).get_by_label("Only these models").check()
    await asked(eyes).get_by_label("assistant").check()
    await asked(eyes).get_by_label("Requests per minute").fill("50000")
    await asked(eyes).get_by_label("Expires").select_option("30d")
    await eyes.fine("create-key")
    eyes.expected = ("400",)
    await asked(eyes).get_by_role("button", name="Create key").click()
    await expect(asked(eyes).get_by_role("alert")).to_contain_text("over the ceiling of workspace 'empty', 10000")
    await asked(eyes).get_by_label("Requests per minute").fill("120")
    await asked(eyes).get_by_role("button", name="Create key").click()
    first = await told(eyes)
    made = await row(eyes, "robot")
    await expect(made).to_contain_text("120/min")
    await expect(made).to_contain_text("assistant")
    await expect(made).to_contain_text("Active")
    await page.get_by_role("button", name="Rotate robot").click()
    await asked(eyes).get_by_label("The old key stops").select_option("0s")
    await asked(eyes).get_by_role("button", name="Rotate").click()
    second = await told(eyes)
    assert first != second
    await expect(page.get_by_role("row")).to_have_count(2)  # the head, and the successor: the old one has ended
    await page.get_by_role("button", name="Revoke robot").click()
    await asked(eyes).get_by_role("button", name="Revoke key").click()
    await expect(page.get_by_text("No keys yet")).to_be_visible()
    await page.get_by_label("Show ended keys").check()
    await expect(page.get_by_role("row").filter(has_text=re.compile("Revoked|Expired"))).to_have_count(2)
    text = await page.content()
    assert first[20:] not in text
    assert second[20:] not in text


async def told(eyes: Eyes) -> str:
    """The secret that is shown, copied with its button, and put away."""
    await eyes.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await expect(asked(eyes)).to_contain_text("Copy it now")
    found = SECRET.search(await asked(eyes).inner_text())
    assert found
    await asked(eyes).get_by_role("button", name="Copy").click()
    await expect(eyes.page.locator(".toast")).to_have_text("Copied")
    assert await eyes.page.evaluate("navigator.clipboard.readText()") == found[0]
    await eyes.fine()
    await asked(eyes).get_by_role("button", name="I have copied it").click()
    return found[0]


async def test_what_the_store_holds_is_text(eyes: Eyes) -> None:
    await eyes.go("API keys")
    await switch(eyes, "northwind")
    await expect(eyes.page.get_by_role("row").filter(has_text=HOSTILE)).to_have_count(1)
    assert await eyes.page.locator("img[src=x]").count() == 0


async def test_usage_is_plotted_and_listed(eyes: Eyes, shop: Conch) -> None:
    page = eyes.page
    await eyes.go("Usage")
    models = page.get_by_role("table", name="Usage by model")
    lines = {line["model"]: line for line in shop.command("usage", "--workspace", "acme", "--by", "model")}
    for name in ("assistant", "minilm", "diffusion"):
        await expect(models.get_by_role("row").filter(has_text=name)).to_contain_text(f"{lines[name]['requests']:,}")
    assert lines["assistant"]["errors"] > 0
    for metric in ("Tokens", "Cost", "Errors", "Latency p95", "Requests"):
        await page.get_by_role("button", name=metric).click()
        await expect(page.get_by_role("img", name=re.compile(f"^{metric}"))).to_be_visible()
    plot = page.locator(".u-over")
    await plot.hover(position={"x": 300, "y": 60})
    await expect(page.locator(".tip")).to_contain_text("assistant")
    await eyes.fine()
    await page.get_by_role("button", name="7 days").click()
    await eyes.settled()
    await switch(eyes, "empty")
    await expect(page.get_by_text("Nothing ran")).to_be_visible()
    await eyes.fine()


async def test_the_plot_has_ink(eyes: Eyes) -> None:
    """Bars in the colour of the model that ran most."""
    await eyes.go("Usage")
    script = """() => {
        const canvas = document.querySelector(".plot canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let at = 0; at < data.length; at += 4) found += data[at] === 11 && data[at + 1] === 122;
        return found / (data.length / 4);
    }"""
    assert await eyes.page.evaluate(script) > 0.05


async def test_money_is_granted_and_limited(eyes: Eyes, shop: Conch) -> None:
    page = eyes.page
    await page.get_by_role("button", name="New workspace").click()
    await asked(eyes).get_by_label("Name").fill("not a name")
    eyes.expected = ("400",)
    await asked(eyes).get_by_role("button", name="Create workspace").click()
    await expect(asked(eyes).get_by_role("alert")).to_contain_text("'not a name' is not 1 to 64 of A-Z")
    await asked(eyes).get_by_label("Name").fill("fabrikam")
    await asked(eyes).get_by_label("Plan").select_option("team")
    await asked(eyes).get_by_role("button", name="Create workspace").click()
    await expect(page.get_by_label("Workspace", exact=True)).to_have_value("fabrikam")
    await eyes.go("Billing")
    await expect(page.get_by_text("No grants yet")).to_be_visible()
    await page.get_by_role("button", name="Grant credits").click()
    await asked(eyes).get_by_label("Dollars").fill("12.345678901")
    await asked(eyes).get_by_label("Note").fill("a <b>bold</b> start")
    await eyes.fine("grant-credits")
    await asked(eyes).get_by_role("button", name="Grant credits").click()
    await expect(await row(eyes, "a <b>bold</b> start")).to_contain_text("+$12.35")
    assert shop.command("credits", "show", "fabrikam")["credits_usd"] == "12.345678901"
    await page.get_by_label("Spend limit").fill("40")
    await page.get_by_label("Ceiling").fill("7000")
    await page.get_by_label("Plan", exact=True).select_option("enterprise")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_text("of $40.00")).to_be_visible()
    (changed,) = [each for each in shop.command("workspaces", "list") if each["name"] == "fabrikam"]
    assert (changed["plan"], changed["ceiling"], changed["spend_limit_usd"]) == ("enterprise", 7000, "40.00")
    await page.get_by_label("Ceiling").fill("many")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_role("alert")).to_contain_text("field ceiling")


@pytest.mark.parametrize(("sdk", "says"), [("Python", r"(\S+\s+){3}"), ("curl", r"data: \[DONE\]")])
async def test_the_snippets_run(eyes: Eyes, shop: Conch, sdk: str, says: str) -> None:
    await eyes.go("Connect")
    await eyes.page.get_by_role("button", name=sdk).click()
    lines = await eyes.page.get_by_role("region", name=f"{sdk} example").inner_text()
    command = [sys.executable, "-c", lines] if sdk == "Python" else ["sh", "-c", lines]
    variables = {"CONCH_API_KEY": shop.key("acme"), "PATH": os.environ["PATH"]}
    done = await asyncio.to_thread(subprocess.run, command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(says, done.stdout), done.stdout  # whatever the assistant finds in today's documentation


async def test_all_of_it_by_keyboard(eyes: Eyes) -> None:
    page = eyes.page
    await page.reload()
    await page.get_by_role("heading", level=1).wait_for()
    skip = page.get_by_role("link", name="Skip to the content")
    await skip.focus()
    await expect(skip).to_be_in_viewport()
    seen = []
    for _ in range(10):
        await page.keyboard.press("Tab")
        seen.append(await page.evaluate("document.activeElement.innerText || document.activeElement.tagName"))
    assert [name for name in seen if name in PAGES] == PAGES
    await page.get_by_role("link", name="API keys").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1, name="API keys")).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(asked(eyes).get_by_label("Name")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(asked(eyes)).to_have_count(0)
    await expect(page.get_by_role("button", name="Create key")).to_be_focused()
