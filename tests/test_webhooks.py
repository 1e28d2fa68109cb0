"""Webhooks as a receiver gets them: signed, once from a fleet, of credits, keys and deployments."""

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripts.triton import Triton
from store import Store, open_store
from store.script import Statement
from tests.gateway import Conch
from tests.priced import judge
from tests.receiver import CONFIG, DOC, Receiver, create, opened, spend, verified
from tests.stores import new_database


@pytest.fixture
def shop(tmp_path: Path) -> Conch:
    return opened(tmp_path)


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
