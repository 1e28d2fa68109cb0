"""The voice pipeline on real models: what is heard, replied and spoken, whole and as events, and what it costs."""

import base64
import inspect
import io
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from config import ConfigError, load
from handlers.door.lifetime import Request
from handlers.door.stages import Stage
from scripts.triton import Triton
from store.records import Units
from tests.gateway import ROOT, Conch
from tests.observed import Model
from tests.priced import CONFIG, Books, Customer, cost, open_books
from tests.raw import Wire, await_true, quiet
from tests.test_transcriptions import FEW, word_share

DOC = (ROOT / "docs" / "voice.md").read_text()
NAMES = {
    "pipe_voice": '{{ transcription = "listener", chat = "assistant", speech = "voice" }}\nvoice = "nova"',
    "pipe_exact": '{{ transcription = "whisper", chat = "priced", speech = "speaker" }}\n'
    'voice = "any"\nsystem = "Be brief."',
    "pipe_mute": '{{ transcription = "whisper", chat = "vllm" }}',
    "pipe_ruinous": '{{ transcription = "whisper", chat = "ruinous", speech = "speaker" }}\nvoice = "any"',
    "pipe_deaf": '{{ chat = "priced", speech = "speaker" }}',
    "pipe_lost": '{{ transcription = "whisper", chat = "absent" }}',
}
ENTRY = '\n[[pipelines]]\nworkspace = "voiced"\nid = "{}"\nmodels = {}\n'
PIPELINES = "".join(ENTRY.format(*each) for each in NAMES.items())
EXACT = "/v1/pipe_exact/pipeline"
LEFT = "In the stage "


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway with pipelines whose models have prices."""
    conch = Conch(tmp_path_factory.mktemp("voice"), triton.url, CONFIG + PIPELINES, grpc=triton.grpc_url)
    conch.workspace("voiced")
    conch.command("credits", "grant", "voiced", "1000")
    with conch.running():
        yield conch
        quiet(conch, conch.key("voiced"))


@pytest.fixture(scope="module")
def key(shop: Conch) -> str:
    return shop.key("voiced")


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


@pytest.fixture(scope="module")
def question(shop: Conch, key: str) -> bytes:
    """A question, spoken by the speech model."""
    with OpenAI(base_url=f"{shop.url}/v1", api_key=key) as sdk:
        return sdk.audio.speech.create(model="voice", voice="alloy", input="What is the weather in the city?").content


def turn(
    shop: Conch, key: str, path: str = EXACT, sound: bytes | None = FEW, headers: Any = None, **fields: Any
) -> httpx2.Response:
    """One turn, as a form; without a sound, as JSON."""
    sent: Any = {"json": fields} if sound is None else {"files": {"file": ("a.wav", sound)}, "data": fields}
    told = {"authorization": f"Bearer {key}", **(headers or {})}
    return httpx2.post(shop.url + path, headers=told, timeout=60, **sent)


def said(*pieces: str, **how: Any) -> str:
    """Messages that have the contract model say these pieces."""
    return json.dumps([{"role": "user", "content": "script: " + json.dumps({"pieces": pieces, **how})}])


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """Those of a stream that ended well."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *frames, last = answer.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def error(answer: httpx2.Response, status: int, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()["error"]
    assert told["param"] == param, told
    return told


async def rows(books: Books, answer: httpx2.Response) -> dict[str, tuple[str, Units, int]]:
    """What the ledger has of a request, by stage: model, units, cost."""
    id = answer.headers["x-request-id"]
    customer = Customer("voiced", "")
    found = {}
    for row in await books.usage(customer):
        if row.id.startswith(id):
            assert row.whole
            found[row.id.removeprefix(id).lstrip("-")] = (row.model, row.units, row.cost)
    return found


async def nothing_held(books: Books) -> None:
    assert (await books.account(Customer("voiced", ""))).held == 0


# Real models


def test_the_documentation_s_example(
    shop: Conch, key: str, question: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "question.mp3").write_bytes(question)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    names: dict[str, Any] = {"key": key}
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code.replace("http://127.0.0.1:8080", shop.url), "docs/voice.md", "exec"), names)
    answer = names["answer"]
    assert out.getvalue() == f"{answer['transcript']}\n{answer['reply']}\n"
    assert word_share("What is the weather in the city?", answer["transcript"]) > 0.5
    assert answer["reply"]
    assert answer["models"] == {"transcription": "listener", "chat": "assistant", "speech": "voice"}
    assert (tmp_path / "reply.wav").read_bytes()[:4] == b"RIFF"
    assert answer["usage"]["transcription"]["seconds"] > 1
    assert answer["usage"]["chat"]["completion_tokens"] > 0
    assert answer["usage"]["speech"]["characters"] == len(answer["reply"])
    (line,) = re.findall(r"```sh\n(curl .*?)```", DOC, re.DOTALL)
    done = subprocess.run(
        ["sh", "-c", line.replace("http://127.0.0.1:8080", shop.url)],
        env={"KEY": key, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["audio"]["format"] == "mp3"


def test_a_stream_of_real_models(shop: Conch, key: str, question: bytes) -> None:
    answer = turn(shop, key, "/v1/pipe_voice/pipeline", question, stream="true", response_format="wav")
    found = events(answer)
    kinds = list(dict.fromkeys(each["type"].removeprefix("pipeline.") for each in found))
    assert kinds == ["transcript.delta", "transcript.done", "reply.delta", "reply.done", "audio.delta", "done"]
    text = {kind: "".join(e["delta"] for e in found if e["type"] == f"pipeline.{kind}.delta") for kind in ("reply",)}
    (reply,) = [each for each in found if each["type"] == "pipeline.reply.done"]
    assert text["reply"] == reply["text"]
    sound = b"".join(base64.b64decode(e["audio"]) for e in found if e["type"] == "pipeline.audio.delta")
    assert sound[:4] == b"RIFF"
    heard = turn(shop, key, "/v1/pipe_voice/pipeline", sound, speech="false").json()
    assert word_share(reply["text"], heard["transcript"]) > 0.3
    assert heard["audio"] is None
    assert found[-1]["usage"]["speech"]["seconds"] > 0


# The conversation


def test_json_and_form_come_to_the_same(shop: Conch, key: str) -> None:
    messages = json.loads(said("one", " two"))
    answer: Any = None
    for audio in (base64.b64encode(FEW).decode(), "data:audio/wav;base64," + base64.b64encode(FEW).decode()):
        answer = turn(shop, key, sound=None, audio=audio, messages=messages).json()
        assert (answer["transcript"], answer["reply"]) == ("w1 w2 w3", "one two")
    form = turn(shop, key, messages=said("one", " two")).json()
    assert (form["transcript"], form["reply"], form["audio"]["data"]) == (
        answer["transcript"], answer["reply"], answer["audio"]["data"],
    )  # fmt: skip


def test_what_the_chat_model_is_told(shop: Conch, key: str) -> None:
    """The system prompt, what was said before, and what was heard."""
    messages = json.dumps([{"role": "user", "content": "echo: Hi"}, {"role": "assistant", "content": "Hello."}])
    answer = turn(shop, key, messages=messages, speech="false", max_tokens="77").json()
    prompt = json.loads(answer["reply"])["tensors"]
    text = prompt["text_input"]["data"][0]
    assert text.index("Be brief.") < text.index("echo: Hi") < text.index("Hello.") < text.index("w1 w2 w3")
    assert json.loads(prompt["sampling_parameters"]["data"][0])["max_tokens"] == 77


def test_a_pipeline_without_speech_has_no_sound(shop: Conch, key: str) -> None:
    answer = turn(shop, key, "/v1/pipe_mute/pipeline", messages=said("ok")).json()
    assert (answer["audio"], answer["models"]["speech"], answer["usage"]["speech"]) == (None, None, None)
    told = error(turn(shop, key, "/v1/pipe_mute/pipeline", speech="true"), 404, "model")
    assert "no model for speech" in told["message"]


# Who may


def test_keys_and_paths(shop: Conch, key: str) -> None:
    bound = shop.key("voiced", "--pipeline", "pipe_exact")
    for path in (EXACT, "/v1/pipeline", "/api/v1/pipeline"):
        assert turn(shop, bound, path, messages=said("ok"), speech="false").json()["reply"] == "ok"
    told = error(turn(shop, bound, "/v1/pipe_mute/pipeline"), 403)
    assert told["code"] == "pipeline_scope_mismatch"
    assert "Name the pipeline" in error(turn(shop, key, "/v1/pipeline"), 400, "pipeline")["message"]
    error(turn(shop, key, "/v1/pipe_nowhere/pipeline"), 404, "pipeline")
    assert "no model for transcription" in error(turn(shop, key, "/v1/pipe_deaf/pipeline"), 404, "model")["message"]
    limited = shop.key("voiced", "--model", "priced")
    error(turn(shop, limited), 404, "model")


# What it costs


async def test_each_stage_is_paid_as_its_own_endpoint_would_be(shop: Conch, key: str, books: Books) -> None:
    for stream in ("false", "true"):
        answer = turn(shop, key, messages=said("one", " two"), stream=stream)
        usage = (events(answer)[-1] if stream == "true" else answer.json())["usage"]
        tokens = usage["chat"]["prompt_tokens"], usage["chat"]["completion_tokens"]
        heard = round(usage["transcription"]["seconds"] * 1000)
        assert usage["speech"]["characters"] == 7
        assert await rows(books, answer) == {
            "transcription": ("whisper", Units(milliseconds=heard), cost("whisper", seconds=heard)),
            "chat": ("priced", Units(*(tokens[0], 0, tokens[1])), cost("priced", input=tokens[0], output=tokens[1])),
            "speech": ("speaker", Units(characters=7), cost("speaker", characters=7)),
        }  # fmt: skip
        await nothing_held(books)


async def test_the_same_again_by_its_key(shop: Conch, key: str, books: Books) -> None:
    for number, stream in enumerate(("false", "true")):
        again = {"idempotency-key": f"turn-{number}"}
        first = turn(shop, key, messages=said("one"), stream=stream, headers=again)
        second = turn(shop, key, messages=said("one"), stream=stream, headers=again)
        assert second.content == first.content
        assert second.headers["x-runinfra-idempotent-replay"] == "true"
        assert len(await rows(books, first)) == 3
        assert await rows(books, second) == {}
        assert turn(shop, key, messages=said("two"), stream=stream, headers=again).status_code == 409


@pytest.mark.parametrize(
    ("fields", "stage", "status"),
    [
        ({"messages": said("one", fail_after=0)}, "chat", 502),
        ({"messages": said("break")}, "speech", 502),
        ({"messages": said("silent")}, "speech", 502),
    ],
)
async def test_a_stage_that_fails_is_named_and_costs_nothing(
    shop: Conch, key: str, books: Books, fields: Any, stage: str, status: int
) -> None:
    answer = turn(shop, key, **fields)
    told = error(answer, status)
    assert told["message"].startswith(f"{LEFT}{stage!r}: ")
    assert told["code"] == "upstream_error"
    assert await rows(books, answer) == {}
    id = answer.headers["x-request-id"]
    assert await books.rows("SELECT id, status FROM failures WHERE id LIKE $1", f"{id}%") == [(f"{id}-{stage}", 502)]
    await nothing_held(books)


async def test_of_a_stream_that_breaks_off_the_client_pays_what_it_has(shop: Conch, key: str, books: Books) -> None:
    answer = turn(shop, key, messages=said("break"), stream="true")
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"]["message"].startswith(f"{LEFT}'speech': ")
    id = answer.headers["x-request-id"]
    found = await books.rows("SELECT id FROM usage WHERE id LIKE $1 ORDER BY id", f"{id}%")
    assert found == [(f"{id}-chat",), (f"{id}-transcription",)]
    await nothing_held(books)


async def test_too_few_credits_are_told_of_the_stage(shop: Conch, key: str, books: Books) -> None:
    answer = turn(shop, key, "/v1/pipe_ruinous/pipeline", messages=said("one"))
    assert answer.status_code == 402
    told = answer.json()["error"]
    assert told["message"].startswith(f"{LEFT}'chat': ")
    assert told["required_cents"] > told["current_balance_cents"]
    assert await rows(books, answer) == {}
    await nothing_held(books)


async def test_a_client_that_leaves_ends_it(shop: Conch, key: str, books: Books, triton: Triton) -> None:
    """In the middle of the reply: what ran is paid, the model is stopped, nothing is spoken."""
    endless = said(*["x"] * 20_000, pace_ms=2)
    model = Model(triton)
    with Wire(shop.url) as wire:
        request = httpx2.Request(
            "POST",
            f"{shop.url}{EXACT}",
            headers={"authorization": f"Bearer {key}"},
            json={
                "audio": base64.b64encode(FEW).decode(),
                "messages": endless,
                "stream": True,
            },
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        wire.send(f"POST {EXACT} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        status, headers = wire.answer_head()
        assert status == 200
        while b"pipeline.reply.delta" not in wire.chunk():
            pass
    await_true(lambda: model.since("cancelled") == 1)
    id = headers["x-request-id"]

    async def paid() -> list[Any]:
        return await books.rows("SELECT id FROM usage WHERE id LIKE $1 ORDER BY id", f"{id}%")

    while not (found := await paid()):
        pass
    assert found == [(f"{id}-chat",), (f"{id}-transcription",)]
    await nothing_held(books)


async def test_the_client_s_own_deadline_ends_it_once(shop: Conch, key: str, books: Books, triton: Triton) -> None:
    model = Model(triton)
    long = said(*["x"] * 5_000, pace_ms=2)
    answer = turn(shop, key, headers={"x-request-timeout": "1.5"}, messages=long, stream="true")
    assert "X-Request-Timeout" in answer.text
    assert "[DONE]" not in answer.text
    await_true(lambda: model.since("cancelled") == 1)
    await nothing_held(books)


def test_a_stage_has_all_that_a_request_has() -> None:
    """But what only the whole is asked for: how it is answered, and what is seen of that."""
    whole = ["body_read", "bytes_only", "error_frames", "record", "renamed", "sent", "trace", "writing"]
    given = {*re.findall(r"self\.(\w+)", inspect.getsource(Stage.__init__)), *vars(Stage)}
    assert {name for name in Request.__slots__ if not name.startswith("_")} - given == {*whole}


# What is refused before any model is asked


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"sound": None}, 400, "file"),
        ({"audio": "aaaa"}, 400, "file"),
        ({"sound": None, "audio": "no base64!"}, 400, "audio"),
        ({"sound": b"no sound"}, 400, "file"),
        ({"sound": b""}, 400, "file"),
        ({"messages": "not JSON"}, 400, "messages"),
        ({"voice": "nobody", "path": "/v1/pipe_voice/pipeline"}, 400, "voice"),
        ({"response_format": "midi"}, 400, "response_format"),
        ({"language": "klingon"}, 400, "language"),
        ({"max_tokens": "0"}, 400, "max_tokens"),
        ({"temperature": "9"}, 400, "temperature"),
        ({"model": "vllm"}, 400, "model"),
        ({"path": "/v1/pipe_lost/pipeline"}, 503, None),
    ],
)
async def test_refused(shop: Conch, key: str, books: Books, fields: dict[str, Any], status: int, param: str) -> None:
    answer = turn(shop, key, **fields)
    error(answer, status, param)
    assert await rows(books, answer) == {}
    await nothing_held(books)


async def test_a_recording_without_words(shop: Conch, key: str, books: Books) -> None:
    silence = FEW[:44] + bytes(len(FEW) - 44)
    told = error(turn(shop, key, sound=silence), 400, "file")
    assert told["code"] == "no_speech"
    assert told["message"] == f"{LEFT}'transcription': There are no words in the recording."


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ('models = { transcription = "l" }\nsystem = "x"', "system needs a model for chat."),
        ('models = { transcription = "l" }\nvoice = "x"', "voice needs a model for speech."),
        ('models = { speech = "s" }\nvoice = "x"', "voice = 'x' is none of alloy."),
    ],
)
def test_a_fault_in_a_pipeline_is_told(tmp_path: Path, pipeline: str, says: str) -> None:
    file = tmp_path / "conch.toml"
    file.write_text(
        '[upstreams.local]\nurls = ["http://127.0.0.1:8000"]\n'
        '[[models]]\nid = "l"\ntask = "transcription"\nupstream = "local"\nmodel = "l"\npreset = "whisper"\n'
        '[[models]]\nid = "s"\ntask = "speech"\nupstream = "local"\nmodel = "s"\npreset = "zero-shot-tts"\n'
        "speech.voices.alloy = {}\n"
        f'[[pipelines]]\nid = "pipe_a"\nworkspace = "acme"\n{pipeline}\n'
    )
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(file, variables={})
