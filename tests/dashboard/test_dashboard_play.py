"""The playground, in a real Chromium: every kind of model, asked through the gateway, answered by a real Triton."""

import base64
import io
import re
from pathlib import Path

import pytest
from openai import OpenAI
from PIL import Image
from playwright.async_api import Browser, expect

from tests.dashboard.eyes import Eyes, Look
from tests.gateway import Conch

SAID = "Good morning. The train to the city leaves at seven in the evening."


@pytest.fixture
async def player(eyes: Eyes) -> Eyes:
    """At the playground, with a key that it made."""
    await enter(eyes)
    return eyes


async def enter(eyes: Eyes) -> None:
    await eyes.go("Playground")
    await eyes.page.get_by_role("button", name="Make a key for an hour").click()
    await eyes.page.get_by_role("group", name="Kind of model").wait_for()


async def say(eyes: Eyes, text: str) -> None:
    await eyes.page.get_by_label("Message", exact=True).fill(text)
    await eyes.page.keyboard.press("Enter")


async def test_a_conversation(eyes_as: Eyes, look: Look) -> None:
    await enter(eyes_as)
    page, log = eyes_as.page, eyes_as.page.get_by_role("log")
    await say(eyes_as, "What does the teller do?")
    await expect(log.locator(".took")).to_have_text(re.compile(r"gateway [\d.]+ ms · \d+ \+ \d+ tokens · stop · req_"))
    await page.get_by_text("Settings").click()
    await page.get_by_label("Offer tools to the model").check()
    await page.get_by_text("Settings").click()
    await say(eyes_as, "What is the weather in Paris?")
    await expect(log.locator(".call")).to_contain_text("get_weather")
    await expect(log.locator(".call")).to_contain_text("Paris")
    await eyes_as.fine("playground")
    if look == "desktop":
        await page.get_by_label("Result of get_weather").fill('{"temperature": 21, "sky": "clear"}')
        await page.get_by_role("button", name="Send the result").click()
        await expect(log.locator(".took")).to_have_count(3)
        await expect(log.locator(".bubble").last).to_contain_text("21")


async def test_a_stream_that_is_stopped(player: Eyes) -> None:
    page = player.page
    await page.get_by_text("Settings").click()
    await page.get_by_label("Most tokens").fill("4000")
    await say(player, "Count to 3000")
    await expect(page.locator(".bubble.model > .text")).to_contain_text("1, 2, 3")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert "3000" not in await page.locator(".bubble.model > .text").inner_text()


async def test_thoughts_and_a_picture(player: Eyes) -> None:
    page = player.page
    sea = io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(sea, "png")
    picture = {"name": "sea.png", "mimeType": "image/png", "buffer": sea.getvalue()}
    await page.locator("input[type=file]").set_input_files(picture)  # type: ignore[arg-type]
    await expect(page.get_by_role("img", name="attached picture")).to_be_visible()
    await say(player, "/think What is in this picture?")
    await expect(page.locator(".took")).to_be_visible()
    await expect(page.locator(".bubble.model > .text").last).to_contain_text("40")
    await expect(page.get_by_text("Reasoning")).to_be_visible()


async def test_what_the_gateway_refuses_is_shown_as_it_is(player: Eyes) -> None:
    page = player.page
    player.expected = ("400",)
    await page.get_by_text("Settings").click()
    await page.get_by_label("Temperature").fill("9")
    await say(player, "Hello")
    alert = page.get_by_role("alert")
    await expect(alert).to_contain_text("Invalid 'temperature'")
    await expect(alert).to_contain_text(re.compile("invalid_value · field temperature · request req_"))
    await player.fine()


async def test_pictures(player: Eyes) -> None:
    page = player.page
    await page.get_by_role("button", name="Pictures").click()
    await page.get_by_label("How many").select_option("2")
    await page.get_by_label("Seed").fill("11")
    await page.get_by_role("button", name="Draw").click()
    drawn = page.locator(".pictures img")
    await expect(drawn).to_have_count(2)
    source = await drawn.first.get_attribute("src")
    assert source
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        assert picture.size == (512, 512)
    await page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth)")
    await player.fine("playground-pictures")


async def test_speech(player: Eyes) -> None:
    page = player.page
    await page.get_by_role("button", name="Speech").click()
    await page.get_by_label("Text").fill(SAID)
    await page.get_by_label("Voice").select_option("verse")
    await page.get_by_role("button", name="Speak").click()
    sound = page.get_by_label("What was spoken")
    await expect(sound).to_be_visible()
    await expect(sound).to_have_js_property("error", None)
    await page.wait_for_function("() => document.querySelector('audio').duration > 0.8")
    await player.fine("playground-speech")


@pytest.fixture
def spoken(shop: Conch, microphone: Path) -> None:
    """What the microphone hears, as the gateway's own voice says it."""
    with OpenAI(base_url=f"{shop.url}/v1", api_key=shop.key("acme"), max_retries=0) as client:
        sound = client.audio.speech.create(model="voice", voice="alloy", input=SAID, response_format="wav")
    microphone.write_bytes(sound.content)


@pytest.mark.usefixtures("spoken")
async def test_a_recording_is_sent_as_wav_and_written_down(player: Eyes) -> None:
    page = player.page
    await page.get_by_role("button", name="Transcription").click()
    await page.get_by_role("button", name="Record").click()
    stop = page.get_by_role("button", name="Stop and transcribe")
    await expect(page.get_by_text("0:05")).to_be_visible(timeout=10_000)  # all of it has been said by then
    async with page.expect_request("**/audio/transcriptions") as sent:
        await stop.click()
    form = (await sent.value).post_data_buffer
    assert form is None or b"RIFF" in form  # Chromium does not always show what a form holds
    heard = page.locator(".heard")
    await expect(heard).to_be_visible(timeout=20_000)
    words = set((await heard.inner_text()).split())
    assert len(words & set(re.findall(r"[a-z]+", SAID.lower()))) > 5, words
    await player.fine("playground-transcription")


async def test_a_key_that_is_typed(browser: Browser, eyes: Eyes, shop: Conch) -> None:
    await eyes.go("Playground")
    page = eyes.page
    eyes.expected = ("401",)
    await page.get_by_label("API key").fill("rp_live_" + "0" * 64)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("The API key is not valid")
    await page.reload()
    await page.get_by_label("API key").fill(shop.key("acme", "--model", "diffusion"))
    await page.keyboard.press("Enter")
    kinds = page.get_by_role("group", name="Kind of model")
    await expect(kinds.get_by_role("button")).to_have_text(["Pictures"])
