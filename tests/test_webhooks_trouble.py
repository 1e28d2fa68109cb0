"""Webhooks in trouble: receivers that are away, gone or silent, gateways that are killed, addresses not taken."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web

from tests.gateway import Conch
from tests.receiver import Received, Receiver, create, delivered, deliveries, opened, spend, verified
from tests.test_admin import TOKEN, ask, done
from tests.test_imports import imported


@pytest.fixture
def shop(tmp_path: Path) -> Conch:
    return opened(tmp_path)


# What does not arrive at once


async def test_a_receiver_that_is_away_gets_it_when_it_is_back(shop: Conch, receiver: Receiver) -> None:
    made = create(shop, receiver.url())
    await receiver.close()
    with shop.running():
        await spend(f"sqlite:{shop.store}", 6)
        async with asyncio.timeout(20):
            while not (found := await asyncio.to_thread(deliveries, shop)) or not found[0]["error"]:
                pass
        assert found[0]["state"] == "pending"
        assert found[0]["error"] == "The URL's host cannot be reached."
        receiver.answer = lambda _: web.Response(status=503 if len(receiver.seen) < 3 else 200)
        await receiver.open()
        seen = await receiver.until(lambda seen: len(seen) >= 3)
        assert len({each.event["id"] for each in seen}) == 1
        assert len({each.body for each in seen}) == 1
        assert all(verified(made["signing_secret"], each) for each in seen)
        last = await delivered(shop)
        assert (last["status"], last["error"], last["next_at"]) == (200, None, None)
        assert last["attempts"] >= 4


async def test_kill_9_between_send_and_mark(shop: Conch, receiver: Receiver) -> None:
    """The receiver has it, and nobody wrote that down: the next gateway sends the same event again."""
    create(shop, receiver.url())
    await spend(f"sqlite:{shop.store}", 6)

    def kill(received: Received) -> web.Response:
        if len(receiver.seen) == 1:
            os.kill(shop.pid, signal.SIGKILL)
        return web.Response()

    receiver.answer = kill
    shop.status = -signal.SIGKILL
    with shop.running():
        await receiver.until(lambda seen: len(seen) >= 1)
    (pending,) = deliveries(shop)
    assert (pending["state"], pending["attempts"], pending["attempted_at"]) == ("pending", 1, None)
    shop.status = 0
    with shop.running():
        first, second = await receiver.until(lambda seen: len(seen) >= 2)
        assert first.body == second.body
        assert (await delivered(shop))["attempts"] == 2


async def test_it_is_given_up_listed_and_sent_again(shop: Conch, receiver: Receiver) -> None:
    create(shop, receiver.url())
    receiver.answer = lambda _: web.Response(status=400, text="no")
    await spend(f"sqlite:{shop.store}", 6)
    with shop.running(CONCH_WEBHOOKS__GIVE_UP="500ms", CONCH_ADMIN_TOKEN=TOKEN):
        dead = await delivered(shop, "dead")
        assert (dead["status"], dead["error"]) == (400, "It answered with status 400.")
        receiver.answer = lambda _: web.Response()
        page = await asyncio.to_thread(done, shop, "GET", "/deliveries?state=dead")
        assert [each["id"] for each in page["data"]] == [dead["id"]]
        again = await asyncio.to_thread(done, shop, "POST", f"/deliveries/{dead['id']}/resend")
        assert (again["state"], again["attempts"]) == ("pending", 0)
        assert (await delivered(shop))["event"] == dead["event"]
        assert "is given up: It answered with status 400." in "".join(shop.log)


@pytest.mark.parametrize("status", [301, 307])
async def test_redirects_are_not_followed(shop: Conch, receiver: Receiver, status: int) -> None:
    made = create(shop, receiver.url())
    receiver.answer = lambda _: web.Response(status=status, headers={"Location": receiver.url("/elsewhere")})
    shop_command = ("webhooks", "test", made["id"])
    await asyncio.to_thread(_fails, shop, *shop_command)
    (sent,) = deliveries(shop)
    assert (sent["state"], sent["status"]) == ("dead", status)
    assert "a redirect, which is not followed" in sent["error"]
    assert [each.path for each in receiver.seen] == ["/hook"]


def _fails(conch: Conch, *arguments: str) -> None:
    conch.command(*arguments, status=1)


async def test_a_receiver_that_is_gone_is_disabled(shop: Conch, receiver: Receiver) -> None:
    made = create(shop, receiver.url())
    receiver.answer = lambda _: web.Response(status=410)
    await spend(f"sqlite:{shop.store}", 6)
    with shop.running():
        await delivered(shop, "dead")
    (card,) = shop.command("webhooks", "list")
    assert card["disabled_at"] is not None
    assert card["reason"] == "It answered with status 410: it wants no more events."
    assert "disabled: enable it first" in shop.command("webhooks", "test", made["id"], status=1)
    enabled = shop.command("webhooks", "set", made["id"], "--enable")
    assert (enabled["disabled_at"], enabled["reason"]) == (None, None)


async def test_a_receiver_that_says_nothing_is_not_waited_for(shop: Conch) -> None:
    writers: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    made = create(shop, f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/")
    await asyncio.to_thread(_fails, shop, "webhooks", "test", made["id"])
    (sent,) = deliveries(shop)
    assert sent["error"] == "The URL did not answer in full within 2 seconds."
    for writer in writers:
        writer.close()
    silent.close()


# Where it may lead


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "must begin with https://"),
        ("https://127.0.0.1/", "must lead to a public address"),
        ("https://169.254.169.254/latest", "must lead to a public address"),
        ("https://[::1]/", "must lead to a public address"),
        ("https://example.com:8443/", "on port 80 or 443"),
        ("https://user:pass@example.com/", "must not hold a user name or a password"),
        ("ftp://example.com/", "must begin with https://"),
        ("https://", "The URL"),
    ],
)
def test_only_to_public_addresses_over_tls(shop: Conch, url: str, why: str) -> None:
    shop.config.write_text(shop.config.read_text().replace("private = true", "private = false"))
    told = shop.command("webhooks", "create", url, status=1)
    assert why in told
    assert told.startswith("conch: Invalid 'url'")


async def test_a_name_that_leads_within_is_refused_when_it_is_sent(shop: Conch, receiver: Receiver) -> None:
    shop.config.write_text(shop.config.read_text().replace("private = true", "private = false"))
    made = create(shop, "https://localhost/hook")
    shop.command("webhooks", "test", made["id"], status=1)
    (sent,) = deliveries(shop)
    assert sent["error"] == "The URL must lead to a public address, on port 80 or 443."
    assert receiver.seen == []


# The operator


def test_what_cannot_be_done_is_told(shop: Conch) -> None:
    with shop.running(CONCH_ADMIN_TOKEN=TOKEN):
        body = {"url": "https://example.com/x"}
        for change, param in (
            ({"url": "nowhere"}, "url"),
            ({"events": []}, "events"),
            ({"events": ["credits.high"]}, "events"),
            ({"events": ["deployment.up"], "workspace": "acme"}, "events"),
            ({"workspace": "nobody"}, "workspace"),
            ({"description": "x\ny"}, "description"),
        ):
            ask(shop, "POST", "/webhooks", body | change).error(400, param)
        ask(shop, "GET", "/webhooks/wh_none").error(404, "id")
        ask(shop, "PATCH", "/webhooks/wh_none", {"enabled": True}).error(404, "id")
        ask(shop, "POST", "/webhooks/wh_none/test").error(404, "id")
        ask(shop, "POST", "/deliveries/dlv_none/resend").error(404, "id")
        ask(shop, "GET", "/deliveries?state=lost").error(400, "state")
        made = done(shop, "POST", "/webhooks", body | {"workspace": "acme"})
        assert made["events"] == ["credits.low", "key.expiring"]
        secret = made.pop("signing_secret")
        assert done(shop, "GET", f"/webhooks/{made['id']}") == made
        assert done(shop, "GET", "/webhooks?workspace=acme")["data"] == [made]
        ask(shop, "PATCH", f"/webhooks/{made['id']}", {}).error(400)
        changed = done(shop, "PATCH", f"/webhooks/{made['id']}", {"enabled": False, "events": ["credits.low"]})
        assert changed["disabled_at"] is not None
        assert changed["events"] == ["credits.low"]
        ask(shop, "POST", f"/webhooks/{made['id']}/test").error(409, "id")
        rotated = done(shop, "POST", f"/webhooks/{made['id']}/rotate", {"grace": "1h"})
        assert rotated["signing_secret"] != secret
        assert done(shop, "DELETE", f"/webhooks/{made['id']}")["id"] == made["id"]
        assert done(shop, "GET", "/webhooks")["data"] == []


async def test_settings_that_are_read_again_hold_for_webhooks(shop: Conch, receiver: Receiver) -> None:
    create(shop, receiver.url())
    await spend(f"sqlite:{shop.store}", 4)
    with shop.running():
        shop.config.write_text(shop.config.read_text().replace("[webhooks]", '[webhooks]\ncredits_low = "7.5"'))
        os.kill(shop.pid, signal.SIGHUP)
        (received,) = await receiver.until(lambda seen: len(seen) >= 1)
        assert received.event["data"]["threshold_usd"] == "7.50"


def test_a_start_waits_for_none_of_it(shop: Conch) -> None:
    create(shop, "http://127.0.0.1:1/")
    start = imported("app.py", "serve", "--config", str(shop.config))
    assert "upstream.pool" in start
    assert not {name for name in start if "webhooks" in name or name in ("aiohttp", "aiosqlite", "store.alerts")}
