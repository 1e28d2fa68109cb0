"""What is seen of a voice turn: each stage is counted, timed and traced as its own endpoint's requests are."""

import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from scripts.triton import Triton
from store.records import Units
from tests.collector import Collector, attributes
from tests.gateway import Conch
from tests.priced import CONFIG, NANO, Books, Customer, open_books
from tests.scrape import TOKEN
from tests.test_access_log import ON, line
from tests.test_metrics import REQUESTS, Counting
from tests.test_pipeline import PIPELINES, error, events, said, turn

PATH = "/v1/pipeline"
MODELS = {"transcription": "whisper", "chat": "priced", "speech": "speaker"}
DURATION = "gen_ai_server_request_duration_seconds"


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway with priced pipelines, with metrics and an access log."""
    conch = Conch(tmp_path_factory.mktemp("seen"), triton.url, CONFIG + PIPELINES, grpc=triton.grpc_url)
    conch.workspace("voiced")
    conch.command("credits", "grant", "voiced", "1000")
    log = conch.config.with_name("access.log")
    with log.open("wb") as conch.stdout, conch.running(**ON, CONCH_METRICS_TOKEN=TOKEN):
        yield conch


@pytest.fixture(scope="module")
def key(shop: Conch) -> str:
    return shop.key("voiced")


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


async def rows(books: Books, id: str) -> dict[str, tuple[Units, int, int]]:
    """Of a request, by stage: units, cost, microseconds."""
    usage = await books.usage(Customer("voiced", ""))
    of = [row for row in usage if row.id.startswith(id)]
    return {row.id.rpartition("-")[2]: (row.units, row.cost, row.duration or 0) for row in of}


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_each_stage_is_counted(shop: Conch, key: str, books: Books, stream: str) -> None:
    count = Counting(shop)
    answer = turn(shop, key, messages=said(*["x "] * 8, pace_ms=20), stream=stream)
    assert answer.status_code == 200, answer.text
    count.until(1, endpoint=PATH)
    assert count(REQUESTS, endpoint=PATH, status="200") == 1
    assert count("conch_requests_in_flight") == 0
    found = await rows(books, answer.headers["x-request-id"])
    for stage, model in MODELS.items():
        route = f"{PATH}/{stage}"
        assert count(REQUESTS, endpoint=route, method="POST", model=model, status="200") == 1
        assert count(REQUESTS, model=model) == 1
        labels = {"gen_ai_request_model": model, "gen_ai_operation_name": stage}
        took, upstream = count(f"{DURATION}_sum", **labels), count("conch_upstream_duration_seconds_sum", model=model)
        assert count(f"{DURATION}_count", **labels) == count("conch_upstream_duration_seconds_count", model=model) == 1
        assert count("conch_gateway_duration_seconds_sum", endpoint=route) == pytest.approx(took - upstream)
        assert 0 < upstream < took
        _, cost, microseconds = found[stage]
        assert took == pytest.approx(microseconds / 1e6, abs=0.001)
        assert count("conch_credits_charged_usd_total", model=model) * NANO == pytest.approx(cost, abs=1e-3)
    assert count(f"{DURATION}_sum", gen_ai_request_model="priced") > 0.1
    assert count(f"{DURATION}_sum", gen_ai_request_model="whisper") < count(f"{DURATION}_sum")
    assert count("conch_transcribed_seconds_total", model="whisper") == found["transcription"][0].milliseconds / 1000
    assert count("conch_speech_characters_total", model="speaker") == found["speech"][0].characters == 16
    for kind, amount in (("input", found["chat"][0].input_tokens), ("output", found["chat"][0].output_tokens)):
        assert count("gen_ai_client_token_usage_sum", gen_ai_token_type=kind, gen_ai_request_model="priced") == amount
    streamed = count("gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="priced")
    assert streamed == (stream == "true")


def test_the_stage_that_fails_is_the_one_that_counts(shop: Conch, key: str) -> None:
    count = Counting(shop)
    error(turn(shop, key, messages=said("break")), 502)
    count.until(1, endpoint=PATH, status="502")
    for stage, status in (("transcription", "200"), ("chat", "200"), ("speech", "502")):
        assert count(REQUESTS, endpoint=f"{PATH}/{stage}", model=MODELS[stage], status=status) == 1
    assert count("conch_upstream_errors_total") == count("conch_upstream_errors_total", model="speaker") == 1
    answer = turn(shop, key, "/v1/pipe_ruinous/pipeline", messages=said("one"))
    assert answer.status_code == 402
    count.until(1, endpoint=PATH, status="402")
    assert count("conch_credits_refused_total", reason="insufficient_credits") == 1
    assert count(REQUESTS, endpoint=f"{PATH}/chat", model="ruinous", status="402") == 1
    assert count(REQUESTS, endpoint=f"{PATH}/speech", model="speaker", status="402") == 0, "it has not begun"


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_a_turn_is_one_line_that_names_its_models(shop: Conch, key: str, books: Books, stream: str) -> None:
    answer = turn(shop, key, messages=said("one", " two"), stream=stream)
    told = line(shop, id := answer.headers["x-request-id"])
    found = await rows(books, id)
    assert (told["endpoint"], told["status"], told.get("model")) == (PATH, 200, None)
    assert [(each["stage"], each["model"]) for each in told["stages"]] == [*MODELS.items()]
    for each in told["stages"]:
        assert 0 < each["upstream_ms"] <= each["total_ms"] < told["total_ms"]
        assert each["total_ms"] == pytest.approx(found[each["stage"]][2] / 1000, abs=1)
    assert sum(each["total_ms"] for each in told["stages"]) < told["total_ms"]
    assert sum(each["upstream_ms"] for each in told["stages"]) == pytest.approx(told["upstream_ms"], abs=0.05)
    units = [each[0] for each in found.values()]
    assert told["output_tokens"] == sum(each.output_tokens for each in units) > 0
    assert (told["characters"], told["audio_ms"]) == (7, found["transcription"][0].milliseconds)
    assert Decimal(told["cost_usd"]) * NANO == sum(each[1] for each in found.values())


def test_a_turn_that_fails_tells_how_far_it_came(shop: Conch, key: str) -> None:
    answer = turn(shop, key, messages=said("one", fail_after=0))
    told = line(shop, answer.headers["x-request-id"])
    assert (told["status"], told["code"]) == (502, "upstream_error")
    assert [each["stage"] for each in told["stages"]] == ["transcription", "chat"]
    assert "cost_usd" not in told


def test_a_turn_that_is_refused_has_no_stages(shop: Conch, key: str) -> None:
    answer = turn(shop, key, messages="no JSON")
    assert "stages" not in line(shop, answer.headers["x-request-id"])


async def test_stages_are_spans(triton: Triton, tmp_path: Path) -> None:
    conch, collector = Conch(tmp_path, triton.url, CONFIG + PIPELINES, grpc=triton.grpc_url), Collector()
    conch.workspace("voiced")
    conch.command("credits", "grant", "voiced", "1000")
    key = conch.key("voiced")
    with collector.listening() as endpoint, conch.running(CONCH_TRACING__ENDPOINT=endpoint):
        found = events(turn(conch, key, messages=said("one", " two"), stream="true"))
    spans = collector.spans
    names = [f"{stage} {model}" for stage, model in MODELS.items()]
    assert spans.keys() == {f"POST {PATH}", "triton", *names}
    whole = spans[f"POST {PATH}"]
    began = whole.start_time_unix_nano
    for name in names:
        span: Any = spans[name]
        assert (span.kind, span.parent_span_id, span.trace_id) == (1, whole.span_id, whole.trace_id)
        assert began < span.start_time_unix_nano < span.end_time_unix_nano < whole.end_time_unix_nano
        assert "error.type" not in attributes(span)
        began = span.end_time_unix_nano
    used = found[-1]["usage"]["chat"]["completion_tokens"]
    assert attributes(spans["chat priced"])["gen_ai.usage.output_tokens"] == used
    assert "one" not in json.dumps([attributes(span) for span in spans.values()], default=str)
