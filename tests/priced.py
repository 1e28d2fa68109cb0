"""What the tests of money share: a gateway whose models have prices, its customers, and its books."""

import io
import json
import re
import urllib.request
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from math import ceil
from typing import Any, NamedTuple
from uuid import uuid4

from openai import AsyncOpenAI

from scripts.triton import Triton
from store import Clock, Store, accounts, ledger, open_store, reports
from store.records import Account, Authority, Budget, Units
from store.reports import UsageRow
from store.script import Script, Statement
from tests import gateway
from tests.gateway import Conch
from tests.raw import Answer, Wire, bearer

Body = bytes | dict[str, Any]
NANO = 1_000_000_000
TONE = b"".join((round(9000 * ((n // 20) % 2) - 4500)).to_bytes(2, "little", signed=True) for n in range(24_321))

# Dollars per million tokens or characters, per picture, per second; most are not whole numbers of anything.
PRICES: dict[str, dict[str, str]] = {
    "priced": {"input": "0.123456789", "output": "0.987654321"},
    "coin": {"output": "1000000"},
    "hasty": {"output": "3"},
    "ruinous": {"output": "999999999"},
    "cached": {"input": "1.500001", "cached_input": "0.150001", "output": "6"},
    "one-by-one": {"input": "0.5", "output": "1.5"},
    "by-grpc": {"input": "0.5", "output": "1.5"},
    "assistant": {"input": "0.07", "output": "0.211"},
    "minilm": {"input": "0.020000001"},
    "reranker": {"input": "0.033333333"},
    "diffusion": {"images": "0.04"},
    "sd": {"images": "0.01"},
    "voice": {"characters": "15.000000001"},
    "speaker": {"characters": "30"},
    "whisper": {"seconds": "0.000100001"},
    "whisper-decoupled": {"seconds": "0.0001"},
}

OWN = {"hasty": 'timeout = "1s"', "cached": 'out.cached_tokens = "num_cached_tokens"', "by-grpc": 'transport = "grpc"'}


def _priced(id: str) -> str:
    return "{{ " + ", ".join(f'{unit} = "{dollars}"' for unit, dollars in PRICES[id].items()) + " }}"


def _config() -> str:
    """The configuration of most tests, with prices, and with models and plans of its own."""
    text = gateway.CONFIG
    for id in PRICES:
        bound = "max_output = 1000\n" if id == "assistant" else ""
        text = text.replace(f'\nid = "{id}"\n', f'\nid = "{id}"\nprice = {_priced(id)}\n{bound}')
    for id, model, preset in (
        ("priced", "vllm", "vllm"),
        ("coin", "vllm", "vllm"),
        ("hasty", "vllm", "vllm"),
        ("ruinous", "vllm", "vllm"),
        ("cached", "caching", "vllm"),
        ("one-by-one", "ensemble", "trtllm"),
        ("by-grpc", "ensemble", "trtllm"),
    ):
        text += f"""
[[models]]
id = "{id}"
task = "chat"
upstream = "local"
model = "{model}"
preset = "{preset}"
max_output = 100_000
chat.template = "{{root}}/tests/plain.jinja"
price = {_priced(id)}
{OWN.get(id, "")}
"""
    return text + PLANS


PLANS = """
[[pipelines]]
id = "pipe_priced"
workspace = "piped"
models = {{ chat = "priced" }}

[credits]
topup_url = "https://example.com/credits"

[plans.pair]
default = 100000
ceiling = 100000
concurrency = 2

[plans.thrifty]
default = 1000
ceiling = 1000
spend_limit = "0.01"
"""
CONFIG = _config()


def cost(model: str, **units: int) -> int:
    """What so many units of a model cost in nano-dollars, by the price list and exact fractions."""
    per = {"images": 1, "seconds": 1000}  # the others are for a million; seconds are counted in milliseconds
    total = sum(Fraction(PRICES[model][unit]) * NANO / per.get(unit, 1_000_000) * n for unit, n in units.items())
    return ceil(total)


def recording(*, loud: bool = True) -> tuple[str, bytes]:
    """1.5200625 seconds at 16 kHz, which are 1520 whole milliseconds."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((1, 2, 16_000, 0, "NONE", ""))
        made.writeframes(TONE if loud else bytes(len(TONE)))
    return "tone.wav", file.getvalue()


class Customer(NamedTuple):
    """A workspace with a key."""

    workspace: str
    key: str

    def sdk(self, conch: Conch, **options: Any) -> AsyncOpenAI:
        """The official SDK, with this customer's key."""
        return AsyncOpenAI(base_url=f"{conch.url}/v1", api_key=self.key, **{"max_retries": 0, **options})


def post(conch: Conch, customer: Customer, path: str, body: Body, **headers: str) -> Answer:
    """The answer to one request on a connection of its own."""
    with Wire(conch.url, timeout=60) as wire:
        send(wire, customer, path, body, **headers)
        return wire.answer()


def send(wire: Wire, customer: Customer, path: str, body: Body, **headers: str) -> None:
    """The request; a body that is not bytes yet becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    wire.request("POST", path, data, **bearer(customer.key), **headers)


class Books:
    """A gateway's store, beside the gateway."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def customer(self, dollars: str = "10", plan: str = "enterprise", spend_limit: int | None = None) -> Customer:
        """A new workspace with so many dollars, and a key of it."""
        name, minted, now = f"w-{uuid4().hex[:12]}", ledger.mint(), 1_700_000_000_000_000
        nano = int(Fraction(dollars) * NANO)

        def opened() -> Script[None]:
            yield from ledger.create_workspace(name, plan, by="test", now=now)
            yield from ledger.set_workspace(name, spend_limit=spend_limit, by="test", now=now)
            yield from ledger.create_key(minted, name, by="test", now=now)
            if nano:
                yield from accounts.grant(name, nano, by="test", now=now)

        await self.store.run(opened())
        return Customer(name, minted.secret)

    async def account(self, customer: Customer) -> Account:
        """As it stands."""
        return await self.store.run(accounts.account(customer.workspace, now=Clock()()))

    async def usage(self, customer: Customer) -> list[UsageRow]:
        """Every request that ran, the newest first."""
        return await self.store.run(reports.requests(reports.Window(workspace=customer.workspace), limit=10_000))

    async def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """What any question to the database gives."""

        def asked() -> Script[list[tuple[Any, ...]]]:
            return [tuple(row) for row in (yield Statement(sql, params))]

        return await self.store.run(asked())

    async def untouched(self, customer: Customer, dollars: str = "10") -> None:
        """Assert that nothing was used, nothing was paid and nothing is held."""
        account = await self.account(customer)
        assert (account.credits, account.held, account.spent) == (int(Fraction(dollars) * NANO), 0, 0)
        assert await self.usage(customer) == []

    async def paid(
        self, customer: Customer, id: str, model: str, units: Units, cost: int, dollars: str = "10"
    ) -> UsageRow:
        """Assert that this one request ran, was paid as it cost, and that nothing is held."""
        (row,) = await self.usage(customer)
        assert (row.id, row.model, row.units, row.cost, row.whole) == (id, model, units, cost, True)
        account = await self.account(customer)
        assert (account.credits, account.held, account.spent) == (int(Fraction(dollars) * NANO) - cost, 0, cost)
        return row


@asynccontextmanager
async def open_books(conch: Conch) -> AsyncIterator[Books]:
    """The books of a gateway that has been started once."""
    store = open_store(f"sqlite:{conch.store}", judge)
    try:
        yield Books(store)
    finally:
        await store.close()


def judge(authority: Authority, now: int) -> Budget:
    """The books take no tokens."""
    raise AssertionError(authority, now)


def started(triton: Triton, model: str = "vllm") -> int:
    """How many requests of a contract model have begun, ever."""
    return count(triton, rf'conch_contract_requests_total{{model="{model}",outcome="started"}} (\S+)')


def done(triton: Triton, model: str) -> int:
    """How many requests of any model have succeeded, ever."""
    return count(triton, rf'nv_inference_request_success{{model="{model}",.*}} (\S+)')


def count(triton: Triton, pattern: str) -> int:
    """A counter on Triton's metrics port."""
    with urllib.request.urlopen(triton.metrics_url, timeout=5) as reply:
        found = re.search(pattern, reply.read().decode())
    return int(float(found[1])) if found else 0
