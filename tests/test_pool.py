"""Several real Tritons behind one upstream: who is asked, who waits, what happens when one is lost or comes back."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from config import Chat, Input, Model, Output, Upstream, load
from scripts.triton import Triton
from tests.test_upstream_grpc import MIRROR, MIRROR_CONFIG
from upstream.deployment import Deployment
from upstream.errors import Broken, DeadlinePassed, ModelFailed, QueueFull, Unavailable, UpstreamError
from upstream.inference import Generation
from upstream.pool import Pool
from upstream.replica import Replica
from upstream.tensors import Array, pack

ROOT = Path(__file__).resolve().parents[1]
Pair = tuple[Triton, Triton]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract model `vllm`, and `mirror`, in whose queue one request may wait."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "vllm").symlink_to(ROOT / "tests" / "contracts" / "vllm")
    (folder / "mirror" / "1").mkdir(parents=True)
    (folder / "mirror" / "1" / "model.py").write_text(MIRROR)
    (folder / "mirror" / "config.pbtxt").write_text(MIRROR_CONFIG)
    return folder


@pytest.fixture(scope="module")
def pair(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two Tritons with the same models."""
    folder = tmp_path_factory.mktemp("log")
    with ExitStack() as stack:
        one, two = (stack.enter_context(Triton(repository, log=folder / f"{name}.log")) for name in ("one", "two"))
        yield one, two


def model(tmp: Path, **changes: Any) -> Model:
    """The `vllm` model by its preset, as a configuration file says it."""
    file = tmp / "conch.toml"
    text = '[upstreams.gpu]\nurls = ["http://127.0.0.1:1"]\n[[models]]\nid = "vllm"\ntask = "chat"\nupstream = "gpu"\n'
    text += f'model = "vllm"\npreset = "vllm"\nchat.template = "{ROOT}/tests/plain.jinja"\n'
    file.write_text(text + "".join(f"{name} = {json.dumps(value)}\n" for name, value in changes.items()))
    return load(file, variables={}).models[0]


@asynccontextmanager
async def served(
    settings: Model, urls: list[str], *, grpc: list[str] | None = None, every: float = 0.3, **more: Any
) -> AsyncIterator[Deployment]:
    """The deployment, once it is verified, and watched."""
    upstream = Upstream(urls=urls, grpc=grpc or [], connect_timeout=1.0, check_every=every)  # type: ignore[arg-type]
    pool = Pool({settings.upstream: upstream}, [settings], **more)
    pool.watch()
    try:
        deployment = pool.deployments[settings.id]
        async with asyncio.timeout(10):
            await deployment.checked.wait()
        yield deployment
    finally:
        await pool.close()


def say(*pieces: str, stream: bool = False, **how: Any) -> Generation:
    return Generation("script: " + json.dumps({"pieces": pieces, **how}), stream=stream, max_tokens=100_000)


async def ask(deployment: Deployment, generation: Generation) -> str:
    """All that it says."""
    answer = await deployment.open(generation)
    text = ""
    try:
        while deltas := await answer.read():
            text += "".join(delta.text for delta in deltas)
    finally:
        answer.close()
    return text


def state(replica: Replica) -> str:
    return replica.health.state


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is looked at sets no event
            await asyncio.sleep(0.01)


def outstanding(deployment: Deployment) -> list[int]:
    return [replica.outstanding for replica in deployment.replicas]


# Who is asked ---------------------------------------------------------------------------------------


async def test_equals_share(pair: Pair, tmp_path: Path) -> None:
    async with served(model(tmp_path), [each.url for each in pair]) as deployment:
        for _ in range(20):
            assert await ask(deployment, say("a")) == "a"
        assert [replica.requests for replica in deployment.replicas] == [10, 10]
        assert outstanding(deployment) == [0, 0]


async def test_the_one_with_less_to_do_is_asked(pair: Pair, tmp_path: Path) -> None:
    """Streams run on one server, and what comes meanwhile goes to the other."""
    async with served(model(tmp_path), [each.url for each in pair]) as deployment:
        held = [await deployment.open(say(*"ab" * 500, stream=True, pace_ms=5)) for _ in range(4)]
        assert outstanding(deployment) == [2, 2]
        for answer in held[::2]:
            answer.close()
        free, busy = sorted(deployment.replicas, key=lambda replica: replica.outstanding)
        assert (free.outstanding, busy.outstanding) == (0, 2)
        before = busy.requests
        for _ in range(10):
            await ask(deployment, say("a"))
        assert busy.requests == before
        for answer in held[1::2]:
            answer.close()
        assert outstanding(deployment) == [0, 0]


# The queue ------------------------------------------------------------------------------------------


async def test_a_bounded_queue(pair: Pair, tmp_path: Path) -> None:
    settings = model(tmp_path, max_inflight=1, max_queue=2)
    async with served(settings, [pair[0].url]) as deployment:
        running = await deployment.open(say(*"ab" * 500, stream=True, pace_ms=5))
        waiting = [asyncio.create_task(ask(deployment, say(word))) for word in ("first", "second")]
        await until(lambda: len(deployment.queue.waiting) == 2)
        with pytest.raises(QueueFull):
            await deployment.open(say("third"))
        assert (deployment.queue.refused, deployment.replicas[0].requests) == (1, 1)
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        assert len(deployment.queue.waiting) == 1
        running.close()
        assert await waiting[1] == "second"
        assert outstanding(deployment) == [0]


async def test_never_more_than_there_is_room_for(pair: Pair, tmp_path: Path) -> None:
    settings = model(tmp_path, max_inflight=2)
    async with served(settings, [each.url for each in pair]) as deployment:
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            if number % 5 == 0:  # leaves, wherever it is
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.002 * number):
                        await ask(deployment, say(*"abc", stream=bool(number % 2), pace_ms=3))
                return
            answer = await deployment.open(say(*"abc", stream=bool(number % 2), pace_ms=3))
            most = max(most, *outstanding(deployment))
            while await answer.read():
                most = max(most, *outstanding(deployment))
            answer.close()

        async with asyncio.timeout(30):
            await asyncio.gather(*(one(number) for number in range(60)))
        assert most == 2
        assert outstanding(deployment) == [0, 0]
        assert not deployment.queue.waiting


async def test_the_choices_of_one_stream_do_not_wait_for_each_other(pair: Pair, tmp_path: Path) -> None:
    settings = model(tmp_path, max_inflight=1)
    # A model that makes one answer at a time, so that n of them are as many requests.
    sampling = Input(json={"max_tokens": "max_tokens"})
    settings = replace(settings, inputs={**settings.inputs, "sampling_parameters": sampling})
    async with served(settings, [pair[0].url]) as deployment:
        generation = say(*"abc", stream=True, pace_ms=5)
        generation.n = 3
        async with asyncio.timeout(10):
            assert Counter(await ask(deployment, generation)) == {"a": 3, "b": 3, "c": 3}
        assert outstanding(deployment) == [0]


async def test_the_time_in_the_queue_counts(pair: Pair, tmp_path: Path) -> None:
    settings = model(tmp_path, max_inflight=1, timeout="300ms")
    async with served(settings, [pair[0].url]) as deployment:
        running = await deployment.open(say(*"ab" * 500, stream=True, pace_ms=5))
        with pytest.raises(DeadlinePassed):
            await deployment.open(say("a"))
        running.close()


# Another server -------------------------------------------------------------------------------------


def mirror(transport: str = "infer") -> Model:
    return Model(
        id="mirror",
        task="image",
        upstream="gpu",
        model="mirror",
        transport=transport,  # type: ignore[arg-type]
        inputs={"BYTES": "prompt", "FP32": Input(const=0.5)},
        outputs={"image": Output(tensor="out_UINT8", encoding="raw")},
        chat=Chat(),
    )


def words() -> dict[str, Array]:
    return {"BYTES": pack("BYTES", [1, 1], ["x"])}


@pytest.mark.parametrize("transport", ["infer", "grpc"])
async def test_a_full_queue_of_tritons_is_another_servers_request(pair: Pair, transport: str) -> None:
    """One runs and one waits on each; the fifth finds both full, and has not run."""
    urls, addresses = [each.url for each in pair], [each.grpc_url for each in pair]
    async with served(mirror(transport), urls, grpc=addresses) as deployment:
        assert deployment.verified, deployment.reason
        one, two = deployment.replicas
        for _ in deployment.replicas:
            await deployment.infer(words(), ["out_BYTES"], {})  # connects
        running = [asyncio.create_task(deployment.infer(words(), ["out_BYTES"], {"sleep": 0.5})) for _ in range(2)]
        await until(lambda: outstanding(deployment) == [1, 1])
        # On the first server one more waits; the pool does not know of it.
        due = asyncio.get_running_loop().time() + 10
        foreign = [asyncio.create_task(one.infer(words(), ["out_BYTES"], {"sleep": 0.1}, due)) for _ in range(2)]
        await asyncio.sleep(0.1)
        two.outstanding += 10  # so that the first is asked first
        assert "out_BYTES" in await deployment.infer(words(), ["out_BYTES"], {})
        two.outstanding -= 10
        assert deployment.retries == 1
        assert state(one) == state(two) == "serving"
        await asyncio.gather(*running, *foreign, return_exceptions=True)
        assert outstanding(deployment) == [0, 0]


async def test_a_full_queue_everywhere_is_told(pair: Pair) -> None:
    async with served(mirror(), [pair[0].url]) as deployment:
        asked = [asyncio.create_task(deployment.infer(words(), ["out_BYTES"], {"sleep": 0.5})) for _ in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in told if isinstance(each, Unavailable)]
        assert {each.retry_after for each in refused} == {1}
        assert len(refused) + len([each for each in told if isinstance(each, dict)]) == 3


class Proxy:
    """A TCP proxy before a Triton, which may cut every connection once it has been asked something."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target).port
        self.broken = False
        self.asked = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self.target)
        back = asyncio.create_task(self._pass(there, writer, False))
        await self._pass(reader, onward, True)
        writer.close()
        onward.close()
        await asyncio.wait([back])

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, judged: bool) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if judged and b"/generate" in data:
                    self.asked += 1
                    if self.broken:
                        return
                writer.write(data)
                await writer.drain()


async def test_a_server_that_breaks_off_is_left_out_and_tried_again(pair: Pair, tmp_path: Path) -> None:
    """Its checks pass all the while: only requests can tell."""
    proxy = Proxy(pair[0].url)
    async with proxy.running() as url, served(model(tmp_path), [url, pair[1].url], every=0.2) as deployment:
        bad, good = deployment.replicas
        proxy.broken = True
        failures = 0
        while state(bad) == "serving":
            try:
                await ask(deployment, say("a"))
            except Broken:
                failures += 1
        assert failures == 5
        assert (state(bad), bad.health.ejections, bad.errors) == ("ejected", 1, 5)
        assert bad.reason
        # While it is left out nobody is harmed; then one request at a time tries it.
        outcomes = Counter[bool]()
        while bad.health.ejections < 3:
            try:
                outcomes[await ask(deployment, say("a")) == "a"] += 1
            except Broken:
                outcomes[False] += 1
            await asyncio.sleep(0.01)
        assert outcomes[False] == 2, "a trial each"
        proxy.broken = False
        await until(lambda: state(bad) == "trial")
        assert await ask(deployment, say("a")) == "a"
        assert state(bad) == "serving"
        assert good.health.ejections == 0


async def test_the_last_server_is_not_left_out_for_failing(pair: Pair, tmp_path: Path) -> None:
    """A client whose requests fail must not take the model from the others."""
    async with served(model(tmp_path), [pair[0].url]) as deployment:
        for _ in range(12):
            with pytest.raises(ModelFailed):
                await ask(deployment, say("a", fail_after=0))
        assert await ask(deployment, say("a")) == "a"


async def test_nobody_notices_a_server_that_refuses(pair: Pair, repository: Path, tmp_path: Path) -> None:
    """It is lost between two checks, comes back at the same address, and serves again within a second of that."""
    async with served(model(tmp_path), [pair[0].url], every=30) as alone:
        assert alone.verified
    third = await asyncio.to_thread(Triton(repository, log=tmp_path / "third.log").start)
    ports = third.ports
    async with served(model(tmp_path), [pair[0].url, third.url], every=30) as deployment:
        await asyncio.to_thread(third.stop)
        assert [await ask(deployment, say("a")) for _ in range(10)] == ["a"] * 10
        lost = deployment.replicas[1]
        assert state(lost) == "ejected"
        assert deployment.verified
        again = Triton(repository, http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], log=third.log)
        await asyncio.to_thread(again.start)
        try:
            await until(lambda: state(lost) == "serving", 12)
            before = lost.requests
            await asyncio.gather(*(ask(deployment, say("a")) for _ in range(4)))
            assert lost.requests == before + 2
        finally:
            await asyncio.to_thread(again.stop)


async def test_no_server_is_said_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with served(model(tmp_path), [f"http://127.0.0.1:{port}"]) as deployment:
        assert not deployment.verified
        with pytest.raises(Unavailable):
            await deployment.open(say("a"))


# gRPC -----------------------------------------------------------------------------------------------


def tensors(*pieces: str, **how: Any) -> dict[str, Array]:
    return {
        "text_input": pack("BYTES", [1], ["script: " + json.dumps({"pieces": pieces, **how})]),
        "stream": pack("BOOL", [1], [True]),
    }


async def test_grpc_streams_are_counted_and_wait_their_turn(pair: Pair, tmp_path: Path) -> None:
    settings = model(tmp_path, max_inflight=1)
    async with served(settings, [pair[0].url], grpc=[pair[0].grpc_url]) as deployment:
        first = deployment.stream(tensors(*"ab" * 200, pace_ms=5), ["text_output"], {})
        assert outstanding(deployment) == [0]
        assert await first.read() is not None
        assert outstanding(deployment) == [1]
        second = deployment.stream(tensors("a"), ["text_output"], {})
        reading = asyncio.create_task(second.read())
        await until(lambda: len(deployment.queue.waiting) == 1)
        first.close()
        first.close()
        assert await reading is not None
        assert outstanding(deployment) == [1]
        assert await second.read() is None
        second.close()
        assert outstanding(deployment) == [0]


async def test_grpc_goes_elsewhere_where_it_is_refused(pair: Pair, tmp_path: Path) -> None:
    """The HTTP side of the first server works, so that its checks pass."""
    addresses = ["127.0.0.1:9", pair[1].grpc_url]
    settings = model(tmp_path, transport="grpc")
    async with served(settings, [each.url for each in pair], grpc=addresses) as deployment:
        for _ in range(4):
            stream = deployment.stream(tensors("a"), ["text_output"], {})
            assert await stream.read() is not None
            stream.close()
            assert await ask(deployment, say("a", "b", stream=True)) == "ab"
        assert deployment.retries >= 1
        assert outstanding(deployment) == [0, 0]


async def test_a_stream_closed_while_it_is_read_harms_no_server(pair: Pair, tmp_path: Path) -> None:
    async with served(model(tmp_path), [pair[0].url], grpc=[pair[0].grpc_url]) as deployment:
        for _ in range(8):
            stream = deployment.stream(tensors("a", wait_ms=300), ["text_output"], {})
            reading = asyncio.create_task(stream.read())
            await asyncio.sleep(0.02)
            stream.close()
            with pytest.raises(UpstreamError):
                await reading
        assert (deployment.replicas[0].errors, outstanding(deployment)) == (0, [0])


# Names ----------------------------------------------------------------------------------------------


async def test_a_name_is_spread_over_its_addresses_and_followed(pair: Pair, tmp_path: Path) -> None:
    """Loopback addresses stand for hosts; a Triton listens on one of them each, on the same port, through a proxy."""
    port = 0
    hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
    proxies = [Proxy(pair[0].url) for _ in hosts]
    addresses = ["127.0.0.2", "127.0.0.3"]

    async def resolve(name: str) -> list[str]:
        assert name == "triton.test"
        return addresses

    async def listen(proxy: Proxy, host: str) -> asyncio.Server:
        return await asyncio.start_server(proxy._serve, host, port)

    servers = []
    for proxy, host in zip(proxies, hosts, strict=True):
        servers.append(await listen(proxy, host))
        port = servers[0].sockets[0].getsockname()[1]
    url = f"http://triton.test:{port}"
    async with served(model(tmp_path), [url], every=0.1, resolve=resolve) as deployment:
        assert [replica.server.url for replica in deployment.replicas] == [f"{url} at {each}" for each in addresses]
        for _ in range(10):
            await ask(deployment, say("a"))
        assert [proxy.asked for proxy in proxies] == [5, 5, 0]
        stream = await deployment.open(say(*"ab" * 50, stream=True, pace_ms=5))
        addresses = ["127.0.0.3", "127.0.0.4"]
        await until(lambda: [replica.server.http.at for replica in deployment.serving] == addresses)
        for _ in range(10):
            await ask(deployment, say("a"))
        asked = [proxy.asked for proxy in proxies]
        assert asked[0] <= 6
        assert asked[2] >= 4
        while await stream.read():  # what runs at an address that has gone ends well
            pass
        stream.close()
        addresses = ["127.0.0.4"]
        await until(lambda: [replica.server.http.at for replica in deployment.serving] == addresses)
        assert await ask(deployment, say("a")) == "a"
    for server in servers:
        server.close()
