"""The gRPC client on the real Triton: exchanges, streams, cancelling, errors, and what is left behind."""

import asyncio
import gc
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from scripts.triton import Triton
from upstream import grpc as module
from upstream.errors import (
    Broken,
    ConnectFailed,
    ContextExceeded,
    DeadlinePassed,
    ModelFailed,
    ReplyTooLarge,
    Unavailable,
    UpstreamError,
)
from upstream.grpc import GrpcClient, GrpcStream
from upstream.tensors import Array, pack

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024

# Returns what it was given, or fails as told; one request at a time, and one more may wait.
MIRROR = """
import json, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        told = json.loads(request.parameters())
        time.sleep(told.get("sleep", 0))
        if "code" in told:
            code = getattr(pb_utils.TritonError, told["code"])
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(told["say"], code))
        tensors = [pb_utils.Tensor("out_" + t.name(), t.as_numpy()) for t in request.inputs()]
        if request.inputs()[0].name() == "BYTES":
            echo = json.dumps(told).encode()
            tensors.append(pb_utils.Tensor("parameters", __import__("numpy").array([[echo]], object)))
        return pb_utils.InferenceResponse(tensors)
"""
DTYPES = ["BOOL", "UINT8", "INT64", "UINT64", "FP16", "FP32", "FP64", "BYTES"]
MIRROR_CONFIG = (
    'backend: "python"\nmax_batch_size: 1\n'
    "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"
    + "".join(
        f'input {{ name: "{d}" data_type: TYPE_{d.replace("BYTES", "STRING")} dims: [ -1 ] optional: true }}\n'
        f'output {{ name: "out_{d}" data_type: TYPE_{d.replace("BYTES", "STRING")} dims: [ -1 ] }}\n'
        for d in DTYPES
    )
    + 'output { name: "parameters" data_type: TYPE_STRING dims: [ 1 ] }\n'
    "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
)

# Counts to `count`, and ends with a bare flag or an error; the flag comes alone, so no response at all is possible.
COUNTER = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            told = json.loads(request.parameters())
            sender = request.get_response_sender()
            number = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
            for value in range(number):
                tensor = pb_utils.Tensor("value", np.array([value, 0.5], np.float32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            if "code" in told:
                error = pb_utils.TritonError(told["say"], getattr(pb_utils.TritonError, told["code"]))
                sender.send(pb_utils.InferenceResponse(error=error), final)
            else:
                sender.send(flags=final)
"""
COUNTER_CONFIG = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input { name: "count" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "value" data_type: TYPE_FP32 dims: [ 2 ] }
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton of this file's own, with the models mirror and counter."""
    repository = tmp_path_factory.mktemp("models")
    for name, code, config in (("mirror", MIRROR, MIRROR_CONFIG), ("counter", COUNTER, COUNTER_CONFIG)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "config.pbtxt").write_text(config)
    with Triton(repository, log=tmp_path_factory.mktemp("log") / "triton.log") as server:
        yield server


@pytest.fixture
async def client(triton: Triton) -> AsyncIterator[GrpcClient]:
    """A client of the session's Triton."""
    client = GrpcClient(f"grpc://{triton.grpc_url}")
    async with asyncio.timeout(60):
        yield client
        await client.close()


@pytest.fixture
async def mirror(apart: Triton) -> AsyncIterator[GrpcClient]:
    """A client of this file's Triton."""
    client = GrpcClient(apart.grpc_url)
    async with asyncio.timeout(60):
        yield client
        await client.close()


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def say(client: GrpcClient, prompt: str, *, deadline: float = float("inf")) -> GrpcStream:
    inputs = {"text_input": pack("BYTES", (1,), [prompt]), "stream": pack("BOOL", (1,), [True])}
    return client.stream("vllm", "", inputs, ["text_output"], deadline=deadline)


def script(pieces: list[str], **how: Any) -> str:
    return "script: " + json.dumps({"pieces": pieces, **how})


def count(client: GrpcClient, number: int, **parameters: Any) -> GrpcStream:
    return client.stream("counter", "1", {"count": pack("INT32", (1,), [number])}, [], parameters=parameters)


async def texts(stream: GrpcStream) -> list[str]:
    """What a stream still says, piece by piece; closes it."""
    with closing(stream):
        said = []
        while (arrays := await stream.read()) is not None:
            said.append(arrays["text_output"].items()[0].decode())
        return said


class Outcomes:
    """How the requests to the contract model vllm have ended since this was made, by Triton's own counter."""

    def __init__(self, triton: Triton) -> None:
        self._url = triton.metrics_url
        self._before: Counter[str] = Counter()

    @classmethod
    async def of(cls, triton: Triton) -> "Outcomes":
        """Counts from here; what earlier tests have left is over."""
        outcomes = cls(triton)
        outcomes._before = await outcomes.settled()
        return outcomes

    async def started(self, number: int) -> None:
        """Returns when so many have reached the model."""
        await self._until(lambda counts: counts["started"] >= number)

    async def settled(self) -> Counter[str]:
        """The counts, once none is under way."""
        counts = await self._until(lambda counts: 2 * counts["started"] == counts.total())
        return +counts

    async def _until(self, enough: Callable[[Counter[str]], bool]) -> Counter[str]:
        counts = await asyncio.to_thread(self._read)
        async with asyncio.timeout(20):
            while not enough(counts):
                await asyncio.sleep(0.02)
                counts = await asyncio.to_thread(self._read)
        return counts

    def _read(self) -> Counter[str]:
        with urlopen(self._url, timeout=10) as answer:
            page = answer.read().decode()
        found = re.findall(r'conch_contract_requests_total{model="vllm",outcome="(\w+)"} (\d+)', page)
        counts = Counter({outcome: int(number) for outcome, number in found})
        counts.subtract(self._before)
        return counts


def test_the_module_imports_no_library() -> None:
    code = "import sys, upstream.grpc; print(*{'grpc', 'tritonclient', 'numpy', 'google.protobuf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "address", ["triton", "http://triton:8001", "grpc://triton", "grpc://u@triton:8001", "triton:8001/v2", "a b:1", ""]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        GrpcClient(address)


async def test_unary_carries_every_dtype_both_ways(mirror: GrpcClient) -> None:
    values: dict[str, list[Any]] = {
        "BOOL": [True, False],
        "UINT8": [0, 255],
        "INT64": [-(2**63), 2**63 - 1],
        "UINT64": [0, 2**64 - 1],
        "FP16": [0.5, -2.0],
        "FP32": [0.25, -(2.0**100)],
        "FP64": [1e300, -0.1],
        "BYTES": ["wörld".encode(), b""],
    }
    inputs = {dtype: pack(dtype, (1, 2), flat) for dtype, flat in values.items()}
    names = [f"out_{dtype}" for dtype in DTYPES]
    answer = await mirror.infer("mirror", "", inputs, names, deadline=soon(10))
    assert {name: (array.dtype, array.shape, array.items()) for name, array in answer.items()} == {
        f"out_{dtype}": (dtype, (1, 2), flat) for dtype, flat in values.items()
    }


async def test_only_the_outputs_named_come(mirror: GrpcClient) -> None:
    inputs = {"BYTES": pack("BYTES", (1, 1), ["x"])}
    assert (await mirror.infer("mirror", "1", inputs, ["out_BYTES"])).keys() == {"out_BYTES"}
    assert (await mirror.infer("mirror", "1", inputs, [])).keys() == {"out_BYTES", "parameters"}


async def test_parameters_keep_their_types(mirror: GrpcClient) -> None:
    told: dict[str, str | bool | int | float] = {
        "word": "ü", "yes": True, "number": -3, "large": 2**63 - 1, "half": 0.5
    }  # fmt: skip
    inputs = {"BYTES": pack("BYTES", (1, 1), ["x"])}
    answer = await mirror.infer("mirror", "", inputs, ["parameters"], parameters=told | {"priority": 1})
    received = json.loads(answer["parameters"].items()[0])
    assert {name: received[name] for name in told} == told


async def test_messages_may_be_large_both_ways(mirror: GrpcClient) -> None:
    data = os.urandom(8 * MIB)
    inputs = {"UINT8": Array("UINT8", (1, len(data)), memoryview(data))}
    answer = await mirror.infer("mirror", "", inputs, ["out_UINT8"], deadline=soon(30))
    assert answer["out_UINT8"].data == data


async def test_a_reply_over_the_limit_is_too_large(apart: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REPLY", 1000)
    client = GrpcClient(apart.grpc_url)
    with pytest.raises(ReplyTooLarge):
        await client.infer("mirror", "", {"UINT8": Array("UINT8", (1, 2000), bytes(2000))}, ["out_UINT8"])
    await client.close()


async def test_a_full_queue_is_unavailable_for_a_second(mirror: GrpcClient) -> None:
    inputs = {"BOOL": pack("BOOL", (1, 1), [True])}
    calls = [mirror.infer("mirror", "", inputs, ["out_BOOL"], parameters={"sleep": 0.2}) for _ in range(8)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert 4 <= len(refused) < 8
    assert {(type(error), getattr(error, "retry_after", 0)) for error in refused} == {(Unavailable, 1)}


@pytest.mark.parametrize("number", [0, 1, 100])
async def test_a_stream_has_any_number_of_responses(mirror: GrpcClient, number: int) -> None:
    with closing(count(mirror, number)) as stream:
        for expected in range(number):
            arrays = await stream.read()
            assert arrays is not None
            assert arrays["value"].items() == [expected, 0.5]
        assert await stream.read() is None
        assert await stream.read() is None


async def test_a_plain_model_on_a_stream_is_one_response(mirror: GrpcClient) -> None:
    inputs = {"INT64": pack("INT64", (1, 1), [7])}
    with closing(mirror.stream("mirror", "", inputs, ["out_INT64"])) as stream:
        arrays = await stream.read()
        assert arrays is not None
        assert arrays["out_INT64"].items() == [7]
        assert await stream.read() is None


# By the code of a unary answer; on a stream Triton tells the words alone.
ERRORS: list[tuple[str, str, type[UpstreamError], type[UpstreamError]]] = [
    ("INTERNAL", "CUDA error", ModelFailed, ModelFailed),
    ("UNKNOWN", "nobody knows", ModelFailed, ModelFailed),
    ("UNSUPPORTED", "not here", ModelFailed, ModelFailed),
    ("INVALID_ARG", "a bad value", ModelFailed, ModelFailed),
    ("INVALID_ARG", "The prompt is longer than the maximum model length of 8", ContextExceeded, ContextExceeded),
    ("NOT_FOUND", "no such adapter", Unavailable, ModelFailed),
    ("UNAVAILABLE", "Exceeds maximum queue size", Unavailable, Unavailable),
    ("UNAVAILABLE", "the engine has died", Broken, ModelFailed),
    ("CANCELLED", "given up", Broken, ModelFailed),
]


@pytest.mark.parametrize(("code", "words", "unary", "streamed"), ERRORS)
async def test_a_models_error_keeps_its_meaning(
    mirror: GrpcClient, code: str, words: str, unary: type[UpstreamError], streamed: type[UpstreamError]
) -> None:
    inputs = {"BOOL": pack("BOOL", (1, 1), [True])}
    with pytest.raises(UpstreamError, match=words) as caught:
        await mirror.infer("mirror", "", inputs, [], parameters={"code": code, "say": words})
    assert type(caught.value) is unary
    for before in (0, 3):
        with closing(count(mirror, before, code=code, say=words)) as stream:
            for _ in range(before):
                assert await stream.read() is not None
            with pytest.raises(UpstreamError, match=words) as caught:
                await stream.read()
            assert type(caught.value) is streamed


@pytest.mark.parametrize("ends", [{}, {"code": "UNAVAILABLE", "say": "the end"}])
async def test_a_slow_reader_misses_nothing(mirror: GrpcClient, ends: dict[str, str]) -> None:
    with closing(count(mirror, 500, **ends)) as stream:
        # Long enough for everything, also the end, to have come before it is read.
        await asyncio.sleep(0.5)
        for expected in range(500):
            arrays = await stream.read()
            assert arrays is not None
            assert arrays["value"].items() == [expected, 0.5]
        if ends:
            with pytest.raises(ModelFailed, match="the end"):
                await stream.read()
        else:
            assert await stream.read() is None


async def test_a_model_that_is_not_there_is_unavailable(client: GrpcClient) -> None:
    for model, version in (("nothing", ""), ("vllm", "7")):
        with pytest.raises(Unavailable):
            await client.infer(model, version, {}, [])
        with closing(client.stream(model, version, {}, [])) as stream, pytest.raises(Unavailable):
            await stream.read()


async def test_a_decoupled_model_refuses_unary(client: GrpcClient) -> None:
    with pytest.raises(ModelFailed, match="decoupled"):
        await client.infer("vllm", "", {"text_input": pack("BYTES", (1,), ["x"])}, [])


async def test_two_hundred_streams_at_once(client: GrpcClient) -> None:
    pieces = [[f"{number}", *(f" {number}.{step}" for step in range(9))] for number in range(200)]
    said = await asyncio.gather(*(texts(say(client, script(each, pace_ms=20))) for each in pieces))
    assert said == pieces


async def test_close_before_the_first_response_cancels_at_triton(triton: Triton, client: GrpcClient) -> None:
    outcomes = await Outcomes.of(triton)
    stream = say(client, script(["never said"], wait_ms=1000))
    await outcomes.started(1)
    stream.close()
    stream.close()
    # A model that is to say one thing only would have finished, had the cancel waited for it.
    assert await outcomes.settled() == {"started": 1, "cancelled": 1}


async def test_a_stream_that_was_closed_is_broken(client: GrpcClient) -> None:
    stream = say(client, script(["a"], wait_ms=200))
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    stream.close()
    with pytest.raises(Broken, match="closed here"):
        await reading
    with pytest.raises(Broken, match="closed here"):
        await stream.read()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_read_cancels_at_triton(triton: Triton, client: GrpcClient, begun: bool) -> None:
    outcomes = await Outcomes.of(triton)
    stream = say(client, script(["a"] * 40, wait_ms=0 if begun else 1000, pace_ms=200))
    if begun:
        assert await stream.read() is not None
    reading = asyncio.create_task(stream.read())
    await outcomes.started(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await outcomes.settled() == {"started": 1, "cancelled": 1}


async def test_a_cancelled_unary_call_stays_cancelled(mirror: GrpcClient) -> None:
    inputs = {"BOOL": pack("BOOL", (1, 1), [True])}
    call = asyncio.create_task(mirror.infer("mirror", "", inputs, [], parameters={"sleep": 0.2}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call, 0.05)
    assert call.cancelled()
    assert (await mirror.infer("mirror", "", inputs, [], deadline=soon(10)))["out_BOOL"].items() == [True]


async def test_the_deadline_ends_it_and_cancels(triton: Triton, client: GrpcClient, mirror: GrpcClient) -> None:
    outcomes = await Outcomes.of(triton)
    for wait, phase in ((1000, "head"), (0, "body")):
        with pytest.raises(DeadlinePassed) as passed:
            await texts(say(client, script(["a"] * 40, wait_ms=wait, pace_ms=100), deadline=soon(0.3)))
        assert (passed.value.phase, passed.value.sent) == (phase, True)
    assert await outcomes.settled() == {"started": 2, "cancelled": 2}
    inputs = {"BOOL": pack("BOOL", (1, 1), [True])}
    with pytest.raises(DeadlinePassed):
        await mirror.infer("mirror", "", inputs, [], parameters={"sleep": 0.5}, deadline=soon(0.1))
    with pytest.raises(DeadlinePassed) as late:
        say(client, "x", deadline=soon(-1))
    assert not late.value.sent


async def test_where_nobody_serves_nothing_was_sent(triton: Triton) -> None:
    http = f"127.0.0.1:{urlsplit(triton.url).port}"
    for address in ("127.0.0.1:1", "nobody.invalid:8001", http):
        client = GrpcClient(address)
        with pytest.raises(ConnectFailed) as unary:
            await client.infer("vllm", "", {}, [], deadline=soon(10))
        with closing(client.stream("vllm", "", {}, [], deadline=soon(10))) as stream, pytest.raises(ConnectFailed):
            await stream.read()
        assert not unary.value.sent
        await client.close()


async def test_connecting_takes_no_longer_than_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = GrpcClient(f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.3)
        start = asyncio.get_running_loop().time()
        with pytest.raises(ConnectFailed):
            await client.infer("vllm", "", {}, [], deadline=soon(20))
        assert asyncio.get_running_loop().time() - start < 5
        await client.close()


async def test_closing_the_client_ends_what_is_under_way(triton: Triton, apart: Triton) -> None:
    outcomes = await Outcomes.of(triton)
    first, second = GrpcClient(triton.grpc_url), GrpcClient(apart.grpc_url)
    stream = say(first, script(["a"] * 20, wait_ms=300))
    reading = asyncio.create_task(stream.read())
    inputs = {"BOOL": pack("BOOL", (1, 1), [True])}
    calling = asyncio.create_task(second.infer("mirror", "", inputs, [], parameters={"sleep": 0.3}))
    await outcomes.started(1)
    await asyncio.gather(first.close(), second.close())
    for task in (reading, calling):
        with pytest.raises(Broken):
            await task
    assert await outcomes.settled() == {"started": 1, "cancelled": 1}
    with pytest.raises(ConnectFailed):
        say(first, "x")
    await first.close()


async def test_a_server_that_dies_breaks_its_streams_and_is_found_again(tmp_path: Path) -> None:
    def start(port: int = 0) -> Triton:
        return Triton(ROOT / "tests" / "contracts", grpc_port=port, log=tmp_path / "triton.log")

    server = start()
    with server:
        client = GrpcClient(server.grpc_url)
        begun, waiting = say(client, script(["a"] * 99, pace_ms=100)), say(client, script(["a"], wait_ms=9000))
        assert await begun.read() is not None
        assert server.process is not None
        server.process.kill()
        for stream in (begun, waiting):
            with pytest.raises(Broken) as broken:
                await texts(stream)
            assert broken.value.sent
        # The streams can hear of it before the channel does: one more may still be sent on the dead connection.
        with pytest.raises((Broken, ConnectFailed)):
            await texts(say(client, "x"))
        with pytest.raises(ConnectFailed):
            await texts(say(client, "x"))
    with start(server.ports[1]):
        async with asyncio.timeout(10):
            while True:
                try:
                    assert "".join(await texts(say(client, "x"))).startswith("Hello")
                    break
                except ConnectFailed:
                    await asyncio.sleep(0.05)
    await client.close()


async def test_nothing_is_left_of_three_hundred_abandoned_streams(triton: Triton, client: GrpcClient) -> None:
    async def abandon(number: int) -> None:
        with closing(say(client, script(["a"] * 40, wait_ms=number % 3 * 100, pace_ms=50))) as stream:
            if number % 3 == 0:
                assert await stream.read() is not None
            elif number % 3 == 1:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(stream.read(), 0.01)

    def left() -> tuple[int, int, int]:
        gc.collect()
        streams = sum(isinstance(thing, GrpcStream) for thing in gc.get_objects())
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks()), streams

    await texts(say(client, "x"))
    outcomes, before = await Outcomes.of(triton), left()
    for start in range(0, 300, 50):
        await asyncio.gather(*(abandon(number) for number in range(start, start + 50)))
    # Those that were closed before they were even sent never reach the model; all others are cancelled there.
    counts = await outcomes.settled()
    assert counts["started"] == counts["cancelled"] >= 100
    for _ in range(200):
        if left() == before:
            break
        await asyncio.sleep(0.05)
    assert left() == before
    assert await texts(say(client, script(["still", " here"]))) == ["still", " here"]


async def test_tls_trusts_the_systems_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    making = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    naming = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, [openssl, *making, *naming], check=True, capture_output=True)
    import grpc  # type: ignore[import-untyped]

    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    # It serves nothing, and says so: behind TLS that is an answer, before it there is none.
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    trusting = GrpcClient(f"grpcs://127.0.0.1:{port}")
    with pytest.raises(ModelFailed, match="UNIMPLEMENTED"):
        await trusting.infer("m", "", {}, [], deadline=soon(10))
    monkeypatch.delenv("SSL_CERT_FILE")
    stranger = GrpcClient(f"grpcs://127.0.0.1:{port}")
    with pytest.raises(ConnectFailed):
        await stranger.infer("m", "", {}, [], deadline=soon(10))
    await asyncio.gather(trusting.close(), stranger.close())
    await server.stop(None)
