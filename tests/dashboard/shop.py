"""The gateway that the dashboard's tests look at: every kind of model, and a month of business already done."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from config import load
from handlers.door.admission import judge
from handlers.door.billing import Tariff
from handlers.ops.values import dollars
from handlers.ops.webhooks.events import EVERY
from store import Store, accounts, ledger, open_store, webhooks
from store.records import Closing, Failure, Units, Usage
from store.script import identify
from tests.gateway import Conch

TOKEN = "the operator's token, with ü"  # what a header carries as UTF-8
CONFIG = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[webhooks]
private = true
every = "200ms"
retry = "1h"

[plans.pro]
spend_limit = "250"

[upstreams.local]
urls = ["{triton}"]
grpc = ["{grpc}"]
check_every = "1s"

[upstreams.spare]
urls = ["{triton}", "http://127.0.0.1:9"]
check_every = "1s"

[[models]]
id = "assistant"
task = "chat"
upstream = "local"
model = "assistant"
preset = "vllm"
max_output = 4096
price = {{ input = "0.60", output = "2.40" }}
chat = {{ template = "{root}/models/assistant", tools = "hermes", reasoning = "think" }}

[[models]]
id = "llama-3.3-70b"
task = "chat"
upstream = "local"
model = "llama"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "minilm"
task = "embedding"
upstream = "spare"
model = "minilm"
transport = "infer"
price = {{ input = "0.02" }}
embedding = {{ tokenizer = "{cache}/minilm/tokenizer.json", max_tokens = 256 }}
in.text = "input"
out = {{ embedding = "embedding", prompt_tokens = "tokens" }}

[[models]]
id = "diffusion"
task = "image"
upstream = "local"
model = "diffusion"
preset = "sd"
price.images = "0.01"
image.sizes = ["64x64..2048x2048"]
in.height = "size.height"
in.width = "size.width"
in.seed = "seed"

[[models]]
id = "voice"
task = "speech"
upstream = "local"
model = "voice"
transport = "grpc"
price.characters = "12"
speech.voices = {{ alloy = {{}}, nova = {{}}, verse = {{}} }}
in = {{ text = "text", voice = "voice.name", speed = "speed" }}
out.audio = {{ tensor = "waveform", rate = 22050 }}

[[models]]
id = "listener"
task = "transcription"
upstream = "local"
model = "listener"
preset = "whisper"
transcription = {{ languages = ["en"], translates = false }}

[[pipelines]]
id = "pipe_support"
workspace = "acme"
models = {{ chat = "assistant", speech = "voice" }}
"""
HOSTILE = "<img src=x onerror=alert(1)>"  # the name of a key: it is to be read, not to be run
SHARES = {"assistant": 60, "minilm": 25, "diffusion": 6, "voice": 5, "listener": 4}
MEDIANS = {"assistant": 900, "minilm": 14, "diffusion": 420, "voice": 210, "listener": 1300}


async def open_shop(conch: Conch) -> None:
    """Fill the store of a gateway that does not run yet: workspaces, keys, grants, a month of requests and failures."""
    config = load(conch.config, variables={})
    store = open_store(config.store.url, judge(config.plans))
    try:
        await store.migrate()
        await _fill(store, {model.id: Tariff(model.price) for model in config.models if model.price is not None})
    finally:
        await store.close()


async def _fill(store: Store, tariffs: dict[str, Tariff]) -> None:
    by, today = "cli:ann", datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)

    def at(days: float) -> int:
        return int((today - timedelta(days=days)).timestamp() * 1_000_000)

    for name, plan in (("acme", "pro"), ("empty", "team"), ("northwind", "enterprise")):
        await store.run(ledger.create_workspace(name, plan, by=by, now=at(40)))
    for days, amount, note in ((31, "100", "invoice 1041"), (17, "150", "invoice 1052"), (3, "75", "goodwill")):
        await store.run(accounts.grant("acme", dollars(amount), note=note, by=by, now=at(days - 0.4)))
    keys = []
    for days, name, fields in (
        (38, "website", {}),
        (36, "search indexer", {"models": ["minilm"], "limit": 800}),
        (20, "support line", {"pipeline": "pipe_support"}),
        (9, "nightly tests", {"expires_at": at(-2)}),
        (9, HOSTILE, {"workspace": "northwind"}),
    ):
        asked: dict[str, Any] = {"name": name, "pipeline": None, "limit": None, "models": None, "expires_at": None}
        asked |= {"workspace": "acme", **fields}
        key = await store.run(ledger.create_key(ledger.mint(), **asked, by=by, now=at(days)))
        keys.append(key.id)
    await store.run(accounts.settle(_month(keys[:3], tariffs, at), at(0)))
    await _tell(store, by, at)


async def _tell(store: Store, by: str, at: Callable[[float], int]) -> None:
    """Two webhooks, and what was sent to them: what is still to be sent goes to a name that nobody has."""
    for url, workspace, types, said, days in (
        ("https://ops.acme.example/conch", None, list(EVERY), "The pager", 30),
        ("https://billing.acme.example/hooks", "acme", ["credits.low", "key.expiring"], "Invoices", 12),
    ):
        await store.run(webhooks.create(webhooks.mint(), workspace, url, types, said, by=by, now=at(days)))
    for number, (ago, type, status, error) in enumerate(
        (
            (4.2, "deployment.down", 200, None),
            (4.1, "deployment.up", 200, None),
            (3.3, "credits.low", 500, "It answered with status 500."),
            (1.4, "key.expiring", 204, None),
        )
    ):
        await store.run(webhooks.put(type, "acme", identify("evt", at(ago) + number), "{}", at(ago)))
        for due in await store.run(webhooks.claim(at(ago), lease=1, most=9)):
            verdict = webhooks.Verdict(error is None, status, error)
            await store.run(webhooks.judge(due.delivery, verdict, now=at(ago) + 1_000_000))


def _month(keys: list[str], tariffs: dict[str, Tariff], at: Callable[[float], int]) -> list[Closing]:
    """Thirty days of requests, fewer at weekends, more each week; the same ones in every run, as seen from today."""
    chance = random.Random(7)
    now = datetime.now(UTC)
    since = now.hour * 3600 + now.minute * 60  # seconds of today that have passed
    closings = []
    for day in range(29, -1, -1):
        weekend = (now - timedelta(days=day)).weekday() > 4
        for number in range(int((150 - 2 * day) * (0.45 if weekend else 1) * chance.uniform(0.85, 1.15))):
            model = chance.choices(list(SHARES), list(SHARES.values()))[0]
            moment = at(day) + chance.randrange(86_400 if day else max(1, since)) * 1_000_000
            id = f"req_{day:02}{number:04}{chance.randrange(1 << 40):010x}"
            key = chance.choice(keys)
            if chance.random() < (0.09 if day == 12 else 0.006):
                closings.append(Closing(id, failure=Failure(moment, "acme", key, model, 502)))
                continue
            units = _units(model, chance)
            cost = tariffs[model].cost(units) if model in tariffs else 0
            duration = int(MEDIANS[model] * 1000 * chance.lognormvariate(0, 0.45))
            used = Usage(moment, "acme", key, model, units, cost * 20, chance.random() > 0.02, duration)
            closings.append(Closing(id, usage=used))
    return closings


def _units(model: str, chance: random.Random) -> Units:
    if model == "assistant":
        return Units(input_tokens=chance.randrange(300, 4000), output_tokens=chance.randrange(40, 900))
    if model == "minilm":
        return Units(input_tokens=chance.randrange(40, 4000))
    if model == "diffusion":
        return Units(images=chance.choice((1, 1, 2, 4)))
    if model == "voice":
        return Units(characters=chance.randrange(60, 1800))
    return Units(milliseconds=chance.randrange(3_000, 90_000))
