"""GET /metrics: what is counted, to the unit, whoever asks for it, and whichever worker answers."""

import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlers.seeing import families
from handlers.seeing.cells import SPARE, Cells
from handlers.seeing.families import FAMILIES
from scripts.triton import Triton
from tests.gateway import ROOT, Conch
from tests.priced import CONFIG, NANO, Books, Customer, open_books, post, recording, send
from tests.raw import Wire, await_true, bearer, chat, quiet, script
from tests.scrape import TOKEN, Scrape, ask, since
from tests.test_workers import workers

CHAT = "/v1/chat/completions"
REQUESTS = "conch_requests_total"
SECRETS = {"CONCH_METRICS_TOKEN": TOKEN, "CONCH_ADMIN_TOKEN": "for the operator"}


@pytest.fixture(scope="module")
def shop(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conch]:
    """A gateway whose models have prices, with a token for its metrics."""
    conch = Conch(tmp_path_factory.mktemp("metrics"), triton.url, CONFIG, grpc=triton.grpc_url)
    conch.workspace("acme")
    with conch.running(**SECRETS):
        yield conch
        quiet(conch, conch.key("acme"))


@pytest.fixture(scope="module")
async def books(shop: Conch) -> AsyncIterator[Books]:
    async with open_books(shop) as books:
        yield books


class Counting:
    """What a block of requests has added."""

    def __init__(self, conch: Conch) -> None:
        self.conch = conch
        self.before = self.after = Scrape(conch)

    def until(self, requests: int, **labels: str) -> "Counting":
        """Look until so many more have ended: a request is counted when its client has had all of it."""

        def counted() -> bool:
            self.after = Scrape(self.conch)
            return self(REQUESTS, **labels) == requests

        await_true(counted)
        return self

    def __call__(self, name: str, **labels: str) -> float:
        return since(self.before, self.after, name, **labels)


# Who may ask --------------------------------------------------------------------------------------


def test_the_tokens_open_it_and_nothing_else(shop: Conch) -> None:
    for token in SECRETS.values():
        answer = ask(shop, **bearer(token))
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
    for headers in ({}, bearer("for the operato"), bearer(shop.key("acme"))):
        answer = ask(shop, **headers)
        assert answer.error(401)["code"] == "invalid_metrics_token"
        assert answer.headers["www-authenticate"] == 'Bearer realm="metrics"'
    with Wire(shop.url) as wire:  # the metrics' token is not the operator's
        wire.request("GET", "/admin/plans", **bearer(TOKEN))
        assert wire.answer().error(401)["code"] == "invalid_admin_token"


def test_without_a_token_it_is_closed_unless_it_is_public_or_off(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url)
    with conch.running():
        answer = ask(conch)
        assert answer.error(403)["code"] == "metrics_closed"
        assert "CONCH_METRICS_TOKEN" in answer.json["error"]["message"]
    with conch.running(CONCH_METRICS__PUBLIC="true"):
        assert ask(conch).status == 200
    assert "CONCH_METRICS" not in "".join(conch.log), "it is no misspelt setting"
    with conch.running(CONCH_METRICS__ENABLED="false", **SECRETS):
        assert ask(conch, **bearer(TOKEN)).error(404)["code"] == "unknown_route"


# What is counted ----------------------------------------------------------------------------------


async def test_a_whole_answer(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    for _ in range(3):
        assert post(shop, customer, CHAT, script("one ", "two", model="priced")).status == 200
    count.until(3, model="priced")
    rows = await books.usage(customer)
    labels = {"endpoint": CHAT, "method": "POST", "model": "priced", "status": "200"}
    assert list(count.after.found(REQUESTS, **labels)) == [(labels, count.after(REQUESTS, **labels))], "no other labels"
    of_model = {"gen_ai_request_model": "priced", "gen_ai_operation_name": "chat", "gen_ai_provider_name": "triton"}
    for kind, used in (("input", "input_tokens"), ("output", "output_tokens")):
        tokens = {**of_model, "gen_ai_token_type": kind}
        assert count("gen_ai_client_token_usage_count", **tokens) == 3
        assert count("gen_ai_client_token_usage_sum", **tokens) == sum(getattr(row.units, used) for row in rows) > 0
    charged = count("conch_credits_charged_usd_total", model="priced")
    assert charged * NANO == pytest.approx(sum(row.cost for row in rows), abs=1e-3)
    assert count("gen_ai_server_request_duration_seconds_count", **of_model) == 3
    total = count("gen_ai_server_request_duration_seconds_sum", **of_model)
    upstream = count("conch_upstream_duration_seconds_sum", model="priced")
    assert count("conch_upstream_duration_seconds_count", model="priced") == 3
    assert count("conch_gateway_duration_seconds_sum", endpoint=CHAT, model="priced") == pytest.approx(total - upstream)
    assert 0 < upstream < total
    assert count("gen_ai_server_time_to_first_token_seconds_count") == 0, "it is of streams"


async def test_a_stream(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    pieces = ["word "] * 11
    answer = post(shop, customer, CHAT, script(*pieces, model="priced", stream=True, pace_ms=20))
    assert answer.body.endswith(b"data: [DONE]\n\n")
    count.until(1, model="priced")
    assert count("gen_ai_server_time_to_first_token_seconds_count", gen_ai_request_model="priced") == 1
    first = count("gen_ai_server_time_to_first_token_seconds_sum", gen_ai_request_model="priced")
    each = count("gen_ai_server_time_per_output_token_seconds_sum", gen_ai_request_model="priced")
    total = count("gen_ai_server_request_duration_seconds_sum", gen_ai_request_model="priced")
    output = count("gen_ai_client_token_usage_sum", gen_ai_request_model="priced", gen_ai_token_type="output")
    assert each >= 0.010
    assert first + each * (output - 1) == pytest.approx(total, rel=1e-3)


async def test_every_kind_of_model(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    tone = recording()[1]
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    form += b'--x\r\ncontent-disposition: form-data; name="file"; filename="tone.wav"\r\n\r\n' + tone + b"\r\n--x--\r\n"
    asked: list[tuple[str, str, Any, dict[str, str]]] = [
        ("minilm", "/v1/embeddings", {"model": "minilm", "input": "The sea."}, {}),
        ("reranker", "/v1/rerank", {"model": "reranker", "query": "sea", "documents": ["The sea."]}, {}),
        ("sd", "/v1/images/generations", {"model": "sd", "prompt": "a boat", "n": 2}, {}),
        ("speaker", "/v1/audio/speech", {"model": "speaker", "input": "Ahoy.", "voice": "1"}, {}),
        ("whisper", "/v1/audio/transcriptions", form, {"content_type": "multipart/form-data; boundary=x"}),
    ]
    for model, path, body, headers in asked:
        answer = post(shop, customer, path, body, **headers)
        assert answer.status == 200, answer
        count.until(1, model=model, endpoint=path, status="200")
    rows = {row.model: row.units for row in await books.usage(customer)}
    tokens = "gen_ai_client_token_usage_sum"
    assert count(tokens, gen_ai_request_model="minilm") == rows["minilm"].input_tokens > 0
    assert count(tokens, gen_ai_request_model="reranker") == rows["reranker"].input_tokens > 0
    assert count("conch_images_total", model="sd") == 2
    assert count("conch_speech_characters_total", model="speaker") == 5
    assert count("conch_transcribed_seconds_total", model="whisper") == pytest.approx(1.52)
    assert count("gen_ai_server_request_duration_seconds_count", gen_ai_operation_name="embeddings") == 1


async def test_what_is_refused(shop: Conch, books: Books) -> None:
    poor, count = await books.customer("0.000001"), Counting(shop)
    assert post(shop, poor, CHAT, script("x", model="priced")).status == 402
    assert post(shop, poor, CHAT, chat("hello", model="nobody's")).status == 404
    assert post(shop, Customer("none", "rp_live_" + "0" * 64), CHAT, chat("hello")).status == 401
    thrifty = await books.customer("10", plan="thrifty")
    assert post(shop, thrifty, CHAT, script("x", model="priced")).status == 403
    limited = Customer("acme", shop.key("acme", "--limit", "1"))
    assert [post(shop, limited, CHAT, chat("hello")).status for _ in range(2)] == [200, 429]
    assert post(shop, limited, "/v1/nowhere", b"{}").status == 404
    count.until(6, method="POST").until(1, endpoint="other", method="other", status="404", code="unknown_route")
    for status, code, model in (
        ("402", "insufficient_credits", "priced"),
        ("403", "plan_limit_exceeded", "priced"),
        ("404", "model_not_found", ""),
        ("401", "invalid_api_key", ""),
        ("429", "rate_limit_exceeded", ""),
    ):
        ((labels, _),) = count.after.found(REQUESTS, endpoint=CHAT, status=status, code=code)
        assert labels.get("model", "") == model
        assert count(REQUESTS, endpoint=CHAT, status=status, code=code) == 1
    assert count("conch_rate_limited_total", reason="rate_limit_exceeded") == 1
    assert count("conch_rate_limited_total", reason="concurrency_limit_exceeded") == 0
    assert count("conch_credits_refused_total", reason="insufficient_credits") == 1
    assert count("conch_credits_refused_total", reason="plan_limit_exceeded") == 1
    assert count("gen_ai_server_request_duration_seconds_count", error_type="insufficient_credits") == 1


async def test_what_fails(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    assert post(shop, customer, CHAT, script("x", model="priced", fail_after=0)).status == 502
    assert post(shop, customer, CHAT, chat("hello", model="absent")).status == 503
    assert post(shop, customer, CHAT, script(*["x"] * 100, model="hasty", pace_ms=50)).status == 504
    broken = post(shop, customer, CHAT, script("x", "y", model="priced", fail_after=1, stream=True))
    assert (broken.status, b"[DONE]" in broken.body) == (200, False)
    count.until(4, endpoint=CHAT)
    assert count("conch_upstream_errors_total", model="priced", code="upstream_error") == 2
    assert count("conch_upstream_errors_total", model="absent", code="model_unavailable") == 1
    assert count("conch_upstream_errors_total", model="hasty", code="deadline_exceeded") == 1
    assert count(REQUESTS, status="200", code="upstream_error") == 1, "a stream that broke off"
    assert count("gen_ai_server_time_to_first_token_seconds_count") == 0, "it is of answers that are whole"


async def test_a_client_that_leaves(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    with Wire(shop.url) as wire:
        send(wire, customer, CHAT, script(*["x"] * 5000, model="priced", stream=True, pace_ms=5))
        assert wire.answer_head()[0] == 200
        assert wire.chunk()
        assert Scrape(shop)("conch_requests_in_flight") == 2, "this one, and the scrape itself"
    count.until(1, endpoint=CHAT, status="499", code="client_disconnected")
    assert count("gen_ai_client_token_usage_count", gen_ai_request_model="priced", gen_ai_token_type="output") == 1
    assert count.after("conch_requests_in_flight") == 1
    assert count("gen_ai_server_request_duration_seconds_count", error_type="client_disconnected") == 1


async def test_the_store_the_process_and_the_models(shop: Conch, books: Books) -> None:
    customer, count = await books.customer(), Counting(shop)
    for _ in range(5):
        assert post(shop, customer, CHAT, script("x", model="priced")).status == 200
    count.until(5, model="priced")
    asks, made = count("conch_store_asks_total"), count("conch_store_transaction_duration_seconds_count")
    assert asks >= 15, "a token, a hold and a settlement of each"
    assert 0 < made <= asks
    assert count("conch_store_transaction_duration_seconds_sum", outcome="committed") > 0
    after = count.after
    assert after("conch_workers") == 1
    assert after("conch_store_away") == after("conch_store_owed") == 0
    assert after("conch_model_ready", model="priced") == after("conch_model_servers_ready", model="priced") == 1
    assert after("conch_model_ready", model="absent") == 0
    ((build, one),) = after.found("conch_build_info")
    assert one == 1
    assert build.keys() == {"version", "commit", "python"}
    ((_, resident),) = after.found("process_resident_memory_bytes", worker="0")
    assert 2e7 < resident < 2e9
    assert after("process_open_fds") > 5
    assert after("process_cpu_seconds_total") > count.before("process_cpu_seconds_total") * 0.999
    assert time.time() - 600 < after("process_start_time_seconds") < time.time() + 1


# The format ---------------------------------------------------------------------------------------


async def test_it_is_what_prometheus_asks_for(shop: Conch, books: Books) -> None:
    """What `promtool check metrics` looks for, and that every family is in the catalogue with its type."""
    customer = await books.customer()
    for stream in (False, True):
        assert post(shop, customer, CHAT, script("x", "y", model="priced", stream=stream)).status == 200
    scrape = Scrape(shop)
    for family in scrape.families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        known = FAMILIES[name]
        assert (family.type, family.documentation) == (known.kind, known.help)
        assert known.help.endswith(".")
        assert re.fullmatch(r"(conch|gen_ai|process)_[a-z_]+", name)
        assert name.endswith("_total") == (known.kind == "counter")
    buckets: dict[tuple[str, frozenset[tuple[str, str]]], list[tuple[float, float]]] = {}
    for (name, pairs), value in scrape.samples.items():
        labels = dict(pairs)
        if name.endswith("_bucket"):
            end = float(labels.pop("le"))
            of = name.removesuffix("_bucket"), frozenset(labels.items())
            buckets.setdefault(of, []).append((end, value))
    assert buckets
    for (name, pairs), counts in buckets.items():
        assert [end for end, _ in counts] == [*FAMILIES[name].bounds, float("inf")]
        assert [count for _, count in counts] == sorted(count for _, count in counts)
        assert counts[-1][1] == scrape.samples[f"{name}_count", pairs]
        assert (name + "_sum", pairs) in scrape.samples


def test_the_documentation_has_every_metric() -> None:
    told = re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "observing.md").read_text(encoding="utf-8"))
    assert FAMILIES.keys() <= set(told)


def test_labels_are_escaped() -> None:
    named = families.series(families.READY, model='a "b"\\\n', other="")
    assert named == 'conch_model_ready{model="a \\"b\\"\\\\\\n"}'


# Several workers ----------------------------------------------------------------------------------


def test_a_scrape_is_of_all_workers_and_outlives_them(triton: Triton, tmp_path: Path) -> None:
    conch = Conch(tmp_path, triton.url)
    conch.workspace("acme")
    key = conch.key("acme")
    with conch.running(**SECRETS, CONCH_SERVER__WORKERS="2"):
        asked = 0

        def more(number: int) -> None:
            nonlocal asked
            for _ in range(number):
                with Wire(conch.url) as wire:
                    wire.request("POST", CHAT, script("x"), **bearer(key))
                    assert wire.answer().status == 200
            asked += number
            for _ in range(8):  # whichever of them answers
                await_true(lambda: Scrape(conch)(REQUESTS, model="vllm", status="200") == asked)

        more(20)
        for worker in sorted(workers(conch)):
            before = workers(conch)
            with contextlib.ExitStack() as stack:
                for _ in range(6):  # some of them in the worker that is killed
                    wire = stack.enter_context(Wire(conch.url))
                    wire.request("POST", CHAT, script(*["x"] * 3000, stream=True, pace_ms=5), **bearer(key))
                    assert wire.answer_head()[0] == 200
                assert Scrape(conch)("conch_requests_in_flight") == 7
                os.kill(worker, signal.SIGKILL)
                await_true(lambda: len(workers(conch) - before) == 1)  # noqa: B023
            more(10)
            await_true(lambda: Scrape(conch)("conch_requests_in_flight") == 1)
        scrape = Scrape(conch)
        assert scrape("conch_workers") == 2
        assert {labels["worker"] for labels, _ in scrape.found("process_open_fds")} == {"0", "1"}


def test_a_row_goes_on_where_another_process_stopped() -> None:
    first, second = Cells(2, models=1).rows
    first.claim()
    index = first.place('a{x="ü"}', 3)
    first.cells[index + 2] += 1.5
    assert first.place('a{x="ü"}', 3) == index
    first.claim()  # as a process would that takes its place
    assert first.place('a{x="ü"}', 3) == index
    assert list(first) == [('a{x="ü"}', index, 3)]
    assert first.cells[index + 2] == 1.5
    assert list(second) == []
    assert (first.pid, second.pid) == (os.getpid(), 0)


def test_a_full_row_counts_no_more_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    (row,) = Cells(1, models=0).rows
    row.claim()
    names = 0
    while not caplog.records:
        row.place(f"a{names:0100}", 20)
        names += 1
    assert "there is no room for a0" in caplog.text
    assert len(list(row)) == names - 1
    spilt = row.place("b", 20)
    row.cells[spilt + 19] += 1
    assert spilt + 20 <= len(row.cells)
    assert spilt == len(row.cells) - SPARE
