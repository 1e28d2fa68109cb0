"""Triton, or the way there, fails in every way that the proxy knows, at every endpoint; docs/upstreams.md has it."""

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.endpoints import ENDPOINTS, PAIR, PATIENCE, Endpoint
from tests.chaos.page import README, Results, with_table
from tests.chaos.proxy import (
    FAULTS,
    OVER_GRPC,
    PAST_DEADLINE,
    Fault,
    Proxy,
    cut,
    drip,
    half_close,
    silence_before,
    silence_within,
)
from tests.chaos.stand import BROKEN, FRAME, Outcome, Stand
from tests.priced import Customer

REFUSED = "takes no connection"
NAMES = [REFUSED, *FAULTS]
BACK_IN = 3.0  # seconds
MOST_MEMORY = 600 << 10  # KiB
HALF_WAY = (cut, half_close)
GRPC = [endpoint.over_grpc() for endpoint in ENDPOINTS if endpoint.model != "embed-json"]  # one response is enough

results = Results()


async def spoilt(
    stand: Stand, proxy: Proxy, name: str, endpoints: Sequence[Endpoint]
) -> list[tuple[Customer, Outcome]]:
    """A new customer of each endpoint, and what it gets of a Triton that fails in this way."""
    fault = FAULTS.get(name)
    haste = fault in PAST_DEADLINE
    if fault is None:
        await proxy.refuse()
    proxy.fault = fault
    try:
        if proxy is stand.http or haste:
            return await asyncio.gather(*(stand.suffer(endpoint, haste=haste) for endpoint in endpoints))
        return [await stand.suffer(endpoint) for endpoint in endpoints]  # what one loses of a connection, all lose
    finally:
        proxy.fault = None
        if fault is None:
            await proxy.allow()


async def recovered(
    stand: Stand, name: str, endpoints: Sequence[Endpoint], suffered: Sequence[tuple[Customer, Outcome]]
) -> None:
    """Asserts that nothing is left of it: each customer's next request is answered; after REFUSED, one soon."""
    await stand.empty()
    deadline = time.monotonic() + (BACK_IN if name == REFUSED else 0)
    for endpoint, (customer, _) in zip(endpoints, suffered, strict=True):
        answer = await stand.ask(customer, endpoint)
        while answer is not None and answer.status == 503 and time.monotonic() < deadline:
            answer = await stand.ask(customer, endpoint)
        assert answer is not None, endpoint
        assert endpoint.said(answer) == await stand.usual(endpoint)


@pytest.mark.parametrize("name", NAMES)
async def test_over_http(stand: Stand, name: str) -> None:
    suffered = await spoilt(stand, stand.http, name, ENDPOINTS)
    await recovered(stand, name, ENDPOINTS, suffered)
    for endpoint, (_, outcome) in zip(ENDPOINTS, suffered, strict=True):
        results.http[name, endpoint] = outcome
        if FAULTS.get(name) is drip:
            assert outcome.answer is not None
            assert endpoint.said(outcome.answer) == await stand.usual(endpoint)


@pytest.mark.parametrize("name", [name for name in NAMES if name == REFUSED or FAULTS[name] in OVER_GRPC])
async def test_over_grpc(stand: Stand, name: str) -> None:
    suffered = await spoilt(stand, stand.grpc, name, GRPC)
    await recovered(stand, name, GRPC, suffered)
    for endpoint, (_, outcome) in zip(GRPC, suffered, strict=True):
        if endpoint.kind == "sound" and FAULTS.get(name) in HALF_WAY:  # on a busy machine none of it had left by then
            assert outcome.seen in (BROKEN, "502 `upstream_error`")
            outcome = outcome._replace(seen=BROKEN)
        results.grpc[name, endpoint] = outcome


@pytest.mark.parametrize("name", NAMES)
async def test_with_a_second_server(stand: Stand, name: str) -> None:
    """Of two requests one is sent to each; what has not run is answered by the other, and paid for once."""
    suffered: list[Outcome] = []
    for _ in range(2):
        suffered += [outcome for _, outcome in await spoilt(stand, stand.http, name, [PAIR])]
    await stand.serving(PAIR.model)
    for _ in range(2):
        _, outcome = await stand.suffer(PAIR)
        assert outcome.seen == "200"
    assert "200" in {outcome.seen for outcome in suffered}
    assert all((outcome.paid is not None) == (outcome.seen == "200") for outcome in suffered)
    results.instead[name] = all(outcome.seen == "200" for outcome in suffered)


@pytest.mark.parametrize("fault", [silence_before, silence_within])
async def test_half_a_minute_of_silence(stand: Stand, fault: Fault, long: bool) -> None:
    """Streams have a head and a sign of life meanwhile, and so end with a frame."""
    if not long:
        pytest.skip("it is in make chaos")
    endpoints = [*ENDPOINTS, *GRPC]
    stand.http.fault = stand.grpc.fault = fault
    started = time.monotonic()
    suffered = await asyncio.gather(*map(stand.suffer, endpoints))
    stand.http.fault = stand.grpc.fault = None
    assert PATIENCE <= time.monotonic() - started < PATIENCE + 5
    for endpoint, (_, outcome) in zip(endpoints, suffered, strict=True):
        if endpoint.kind == "stream":
            assert outcome.answer is not None
            assert b": keep-alive\n\n" in outcome.answer.body
            assert outcome.seen == FRAME, endpoint
        else:
            assert outcome.seen in ("504 `deadline_exceeded`", BROKEN), endpoint
            assert outcome.seen != BROKEN or (endpoint.kind == "sound" and fault is silence_within)
    await recovered(stand, "", endpoints, suffered)


def test_no_fault_costs_much_memory(stand: Stand) -> None:
    """All endpoints at once had answers without an end, of which they read what each may have."""
    told = Path(f"/proc/{stand.conch.pid}/status").read_text()
    [most] = re.findall(r"VmHWM:\s+(\d+) kB", told)
    assert int(most) < MOST_MEMORY


def test_the_readme_says_so(write: bool) -> None:
    if set(results.instead) != set(NAMES):
        pytest.skip("not every fault was tried")
    text = README.read_text()
    if write:
        README.write_text(with_table(text, results))
    assert README.read_text() == with_table(text, results), "the README differs; make chaos ARGS=--write"
