"""Webhooks as a receiver gets them: a real one on 127.0.0.1, gateways that are killed, and receivers that are away."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from config import NANO
from scripts.triton import Triton
from store import Store, accounts, open_store
from store.records import Closing, Hold, Units, Usage
from store.script import Statement
from tests.gateway import ROOT, Conch
from tests.priced import judge
from tests.stores import new_database
from tests.test_admin import TOKEN, ask, done
from tests.test_imports import imported

DOC = (ROOT / "docs" / "webhooks.md").read_text()
NOW = 1_700_000_000_000_000
CONFIG = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[webhooks]
private = true
every = "100ms"
retry = "100ms"
timeout = "2s"

[upstreams.local]
urls = ["{triton}"]
connect_timeout = "1s"
check_every = "200ms"

[[models]]
id = "vllm"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
max_output = 1000
price = {{ input = "1", output = "1000" }}
chat.template = "{root}/tests/plain.jinja"
"""


class Received(NamedTuple):
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A real server on 127.0.0.1; `answer` decides on each POST, which it has in `seen` by then."""

    def __init__(self) -> None:
        self.seen: list[Received] = []
        self.answer: Callable[[Received], web.Response] = lambda _: web.Response(status=204)
        self.port = 0
        self._changed = asyncio.Condition()
        self._runner: web.ServerRunner | None = None

    async def open(self) -> None:
        """Again on the same port."""
        self._runner = web.ServerRunner(web.Server(self._handle))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def until(self, enough: Callable[[list[Received]], bool], seconds: float = 20) -> list[Received]:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: enough(self.seen))
        return list(self.seen)

    async def _handle(self, request: Any) -> web.Response:
        received = Received(request.path, dict(request.headers), await request.read())
        self.seen.append(received)
        response = self.answer(received)
        async with self._changed:
            self._changed.notify_all()
        return response


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.open()
    yield receiver
    await receiver.close()


@pytest.fixture
def shop(tmp_path: Path) -> Conch:
    """A gateway that is not started yet, before no Triton, and the workspace acme with ten dollars."""
    conch = Conch(tmp_path, "http://127.0.0.1:1", CONFIG)
    conch.workspace("acme")
    conch.command("credits", "grant", "acme", "10")
    return conch


def create(conch: Conch, url: str, *arguments: str) -> Any:
    return conch.command("webhooks", "create", url, *arguments)


def verified(secret: str, received: Received) -> bool:
    """By the example of the documentation."""
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)
    told: bool = names["verified"](secret, received.headers["RunInfra-Signature"], received.body)
    return told


async def spend(url: str, dollars: float) -> None:
    """What a gateway writes for a request."""
    store = open_store(url, judge)
    amount = int(dollars * NANO)
    usage = Usage(NOW, "acme", "key", "m", Units(), amount)
    await store.run(accounts.settle([Hold("r1", "p", "acme", amount)], NOW))
    await store.run(accounts.settle([Closing("r1", held=True, usage=usage)], NOW))
    await store.close()


def deliveries(conch: Conch, **where: str) -> list[dict[str, Any]]:
    options = [text for name, value in where.items() for text in (f"--{name}", value)]
    found: list[dict[str, Any]] = conch.command("webhooks", "deliveries", *options)
    return found


async def delivered(conch: Conch, state: str = "delivered") -> dict[str, Any]:
    """The one delivery there is, once it is so."""
    async with asyncio.timeout(20):
        while True:
            found = await asyncio.to_thread(deliveries, conch)  # a command of its own has no event, and takes its time
            if found and found[0]["state"] == state:
                assert len(found) == 1
                return found[0]


# Signatures


async def test_a_receiver_can_verify_it_and_nobody_else_can_make_one(shop: Conch, receiver: Receiver) -> None:
    made = create(shop, receiver.url())
    secret = made["signing_secret"]
    assert re.fullmatch(r"whsec_[0-9a-f]{64}", secret)
    sent = await asyncio.to_thread(shop.command, "webhooks", "test", made["id"])
    assert (sent["state"], sent["status"], sent["attempts"]) == ("delivered", 204, 1)
    (received,) = receiver.seen
    assert received.headers["Content-Type"] == "application/json"
    assert received.event["type"] == "webhook.test"
    assert received.event["object"] == "event"
    assert received.event["id"] == sent["event"]
    assert verified(secret, received)
    assert not verified(secret[:-1] + "x", received)
    assert not verified(secret, received._replace(body=received.body + b" "))
    stale = re.sub(r"t=\d+", "t=1700000000", received.headers["RunInfra-Signature"])
    assert not verified(secret, received._replace(headers={"RunInfra-Signature": stale}))


async def test_openssl_and_node_come_to_the_same(shop: Conch, receiver: Receiver, tmp_path: Path) -> None:
    made = create(shop, receiver.url())
    await asyncio.to_thread(shop.command, "webhooks", "test", made["id"])
    (received,) = receiver.seen
    header, secret = received.headers["RunInfra-Signature"], made["signing_secret"]
    at, hexadecimal = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", header).groups()  # type: ignore[union-attr]
    openssl = await output(at.encode() + b"." + received.body, "openssl", "dgst", "-sha256", "-hmac", secret, "-r")
    assert openssl.split()[0] == hexadecimal
    (code,) = re.findall(r"```js\n(.*?)```", DOC, re.DOTALL)
    (tmp_path / "verify.mjs").write_text(
        f"{code}\nconst [secret, header, body] = process.argv.slice(2);\n"
        "console.log(verified(secret, header, Buffer.from(body)), verified(secret, header, Buffer.from(body + ' ')));\n"
    )
    node = await output(b"", "node", str(tmp_path / "verify.mjs"), secret, header, received.body.decode())
    assert node.split() == ["true", "false"]


async def output(given: bytes, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(given)
    assert process.returncode == 0
    return out.decode()


async def test_while_a_secret_is_rotated_both_are_good(shop: Conch, receiver: Receiver) -> None:
    made = create(shop, receiver.url())
    for grace, good in (("1h", (True, True, False)), ("0s", (False, True, True))):
        rotated = shop.command("webhooks", "rotate", made["id"], "--grace", grace)
        await asyncio.to_thread(shop.command, "webhooks", "test", made["id"])
        secrets = (made["signing_secret"], rotated["signing_secret"], rotated["signing_secret"])
        found = [verified(secret, receiver.seen[-1]) for secret in secrets[:2]]
        assert found == list(good[:2])
        assert (receiver.seen[-1].headers["RunInfra-Signature"].count("v1=") == 1) is good[2]
        made = rotated


# What is told, by several processes


@pytest.fixture(params=["sqlite", "postgresql"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[Conch], str]:
    """Three gateways on one store, not started yet, and the URL of that."""
    url = new_database(request.param, request)
    config = CONFIG.replace("sqlite:{store}", url)
    conches = [Conch(tmp_path / str(number), "http://127.0.0.1:1", config) for number in range(3)]
    conches[0].command("migrate")
    conches[0].workspace("acme")
    conches[0].command("credits", "grant", "acme", "10")
    return conches, url


async def test_a_fleet_tells_of_low_credits_once(fleet: tuple[list[Conch], str], receiver: Receiver) -> None:
    conches, url = fleet
    made = create(conches[0], receiver.url(), "--workspace", "acme")
    with ExitStack() as stack:
        for conch in conches:
            stack.enter_context(conch.running(CONCH_STORE__URL=url))
        await spend(url, 6)
        (received,) = await receiver.until(lambda seen: len(seen) >= 1)
        assert received.event["type"] == "credits.low"
        assert received.event["data"] == {
            "workspace": "acme", "credits_usd": "4.00", "threshold_usd": "5.00", "topup_url": None,
        }  # fmt: skip
        assert verified(made["signing_secret"], received)
        conches[0].command("credits", "grant", "acme", "10")
        conches[0].command("workspaces", "set", "acme", "--credits-low", "20")
        _, second = await receiver.until(lambda seen: len(seen) >= 2)
        assert (second.event["data"]["credits_usd"], second.event["data"]["threshold_usd"]) == ("14.00", "20.00")
        await asyncio.sleep(1)  # ten looks of each: nobody has anything more to say
    assert len(receiver.seen) == 2


async def test_a_key_is_told_of(shop: Conch, receiver: Receiver) -> None:
    create(shop, receiver.url(), "--event", "key.expiring")
    shop.command("keys", "create", "--workspace", "acme", "--name", "ci", "--expires", "30d")
    with shop.running(CONCH_WEBHOOKS__KEY_EXPIRING="29d"):
        store = open_store(f"sqlite:{shop.store}", judge)
        ((id,),) = await _rows(store, "SELECT id FROM keys")
        ends = "expires_at - CAST(172800000000 AS bigint)"
        await _rows(store, f"UPDATE keys SET created_at = created_at - 172800000000, expires_at = {ends} RETURNING id")
        await store.close()
        (received,) = await receiver.until(lambda seen: len(seen) >= 1)
    assert received.event["data"]["id"] == id
    assert received.event["data"]["prefix"].startswith("rp_live_")
    assert len(received.event["data"]["prefix"]) == 16


async def _rows(store: Store, sql: str) -> list[Any]:
    def asked() -> Any:
        return (yield Statement(sql))

    found: list[Any] = await store.run(asked())
    return found


class Line:
    """A TCP line to a server, which can be cut and mended, and keeps its port."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = parts.hostname, parts.port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(*self._to)
        self._open |= {writer, there[1]}
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        self._open -= {writer, there[1]}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # it was cut
    finally:
        writer.close()


async def test_a_deployment_that_goes_and_comes_back(triton: Triton, tmp_path: Path, receiver: Receiver) -> None:
    """Two gateways, of which one has two workers: once for all of them."""
    line = Line(triton.url)
    await line.mend()
    conches = [Conch(tmp_path / name, f"http://127.0.0.1:{line.port}", CONFIG) for name in ("one", "two")]
    conches[1].store = conches[0].store
    create(conches[0], receiver.url())
    try:
        with ExitStack() as stack:
            for conch, workers in zip(conches, ("1", "2"), strict=True):
                await asyncio.to_thread(stack.enter_context, conch.running(CONCH_SERVER__WORKERS=workers))
            store = open_store(f"sqlite:{conches[0].store}", judge)
            async with asyncio.timeout(20):
                while await _rows(store, "SELECT up FROM sightings") != [(1,)] * 3:
                    pass
            await store.close()
            line.cut()
            (down,) = await receiver.until(lambda seen: len(seen) >= 1)
            assert down.event["type"] == "deployment.down"
            assert down.event["data"]["id"] == "vllm"
            assert down.event["data"]["reason"]
            await line.mend()
            _, up = await receiver.until(lambda seen: len(seen) >= 2)
            assert up.event["type"] == "deployment.up"
            assert up.event["data"] == {"id": "vllm"}
            await asyncio.sleep(0.5)  # five looks of each
    finally:
        line.cut()
    assert len(receiver.seen) == 2


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
