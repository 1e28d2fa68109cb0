"""The upstream HTTP client against a real TCP server that plays scripted bytes."""

import asyncio
import gc
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from upstream.connection import Connection, Stream
from upstream.errors import BadReply, Broken, ConnectFailed, DeadlinePassed, ReplyTooLarge, UpstreamError
from upstream.http import Client, Reply, Target

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
KIB, MIB = 1024, 1024 * 1024


class Peer:
    """The server's end of one connection."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number  # of the connection, from 1
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request; IncompleteReadError when the client has closed."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        _, found, rest = head.partition(b"Content-Length: ")
        return head, await self.reader.readexactly(int(rest.split(b"\r\n")[0]) if found else 0)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def gone(self) -> None:
        """Returns when the client has closed or reset the connection."""
        try:
            while await self.reader.read(64 * KIB):
                pass
        except ConnectionError:
            pass


Play = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(play: Play, *, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Client]:
    """A client of a server that plays `play` on each connection, then closes it."""
    tasks: set[asyncio.Task[None]] = set()
    server_tls = options.pop("server_tls", None)
    scheme = "https" if server_tls or options.pop("https", False) else "http"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await play(Peer(len(tasks), reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has closed, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=server_tls)
    name = f"[{host}]" if ":" in host else host
    client = Client(f"{scheme}://{name}:{server.sockets[0].getsockname()[1]}", **options)
    try:
        async with asyncio.timeout(20):
            yield client
    finally:
        client.close()
        server.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [r for r in results if isinstance(r, Exception)]
        assert not failures, failures
        assert client.open == client.idle == 0


def get(client: Client) -> Target:
    return client.target("GET", "/v2")


def generate(client: Client) -> Target:
    return client.target("POST", "/v2/models/m/generate", {"Content-Type": "application/json"})


def streams() -> int:
    return sum(isinstance(thing, Stream) for thing in gc.get_objects())


def soon(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def drain(target: Target, *, deadline: float | None = None) -> None:
    with await target.open(b"{}", deadline=deadline) as stream:
        await stream.all(MIB)


def playing(reply: bytes, *, stay: bool = False) -> Play:
    """Answers each connection's first request with these bytes, then closes, or waits for the client to."""

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(reply)
        if stay:
            await peer.gone()

    return play


async def test_request_bytes_reuse_and_counters() -> None:
    requests = []

    async def play(peer: Peer) -> None:
        while True:
            requests.append((peer.number, *await peer.request()))
            peer.send(b"HTTP/1.1 400 Bad\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nwrong")

    async with serving(play) as bare:
        client = Client(f"http://{bare.address}/triton/")
        target = client.target("POST", "/v2/models/m/infer", {"Content-Type": "application/octet-stream"})
        reply = await target.call(b"\x00\x01", extra=b"Inference-Header-Content-Length: 1\r\n")
        assert reply == Reply(400, {b"content-type": b"text/plain", b"content-length": b"5"}, b"wrong")
        await target.call()
        await client.target("GET", "/v2").call()
        assert (client.open, client.idle, client.in_use) == (1, 1, 0)
        (connection,) = client._pool.idle
        option = connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option
        client.close()
    host = b"Host: %b\r\n" % bare.address.encode()
    post = b"POST /triton/v2/models/m/infer HTTP/1.1\r\n" + host + b"Content-Type: application/octet-stream\r\n"
    assert requests == [
        (1, post + b"Content-Length: 2\r\nInference-Header-Content-Length: 1\r\n\r\n", b"\x00\x01"),
        (1, post + b"Content-Length: 0\r\n\r\n", b""),
        (1, b"GET /triton/v2 HTTP/1.1\r\n" + host + b"\r\n", b""),
    ]


REPLIES = {  # bytes of the answer: status, body, and whether the connection is kept
    "length": (OK, 200, b"ok", True),
    "empty": (b"HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n", 500, b"", True),
    "chunked": (CHUNKED + b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", 200, b"abcd", True),
    "extension and trailer": (CHUNKED + b"3;x=y\r\nabc\r\n0\r\nX: 1\r\nX: 2\r\n\r\n", 200, b"abc", True),
    "interim": (b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n" + OK, 200, b"ok", True),
    "no content": (b"HTTP/1.1 204 No\r\n\r\n", 204, b"", True),
    "not modified": (b"HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, b"all of it", False),
    "1.0 until the end": (b"HTTP/1.0 200 OK\r\n\r\nall", 200, b"all", False),
    "1.0 length": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
    ),
    "garbage after it": (OK + b"garbage", 200, b"ok", False),
    "a second begun": (OK + b"HTTP/1.1 2", 200, b"ok", False),
    "a second whole": (OK + b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad", 200, b"ok", False),
}


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("case", REPLIES)
async def test_replies(case: str, stepwise: bool) -> None:
    reply, status, body, kept = REPLIES[case]

    async def play(peer: Peer) -> None:
        await peer.request()
        for part in [reply[i : i + 1] for i in range(len(reply))] if stepwise else [reply]:
            peer.send(part)
            await asyncio.sleep(0)  # a turn of the loop, in which the client reads it
        if "end" not in case:
            await peer.gone()

    async with serving(play) as client:
        whole = await generate(client).call(b"{}")
        assert (whole.status, whole.body) == (status, body)
        if not stepwise:  # else what follows the answer may still be on its way
            assert client.idle == client.open == int(kept)
    async with serving(play) as client:
        with await generate(client).open(b"{}") as stream:
            assert stream.status == status
            assert await stream.all(limit=100) == body
            assert await stream.read() == b""
        assert stream.headers == whole.headers
        assert not {b"x", b"a"} & stream.headers.keys()  # neither a trailer's nor an interim answer's


async def test_repeated_and_empty_headers() -> None:
    reply = b"HTTP/1.1 200 OK\r\nVary: a\r\nX-Empty:\r\nvary: b\r\nContent-Length: 0\r\n\r\n"
    async with serving(playing(reply)) as client:
        headers = (await get(client).call()).headers
    assert headers == {b"vary": b"a, b", b"x-empty": b"", b"content-length": b"0"}


async def test_head_has_no_body_and_costs_its_connection() -> None:
    async with serving(playing(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", stay=True)) as client:
        reply = await client.target("HEAD", "/v2").call()
        assert (reply.status, reply.body, reply.headers[b"content-length"]) == (200, b"", b"99")
        assert client.open == 0


FAULTS: dict[str, tuple[bytes, type[UpstreamError]]] = {
    "nothing": (b"", Broken),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", Broken),
    "short of its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", Broken),
    "a chunk short": (CHUNKED + b"9\r\nshort", Broken),
    "no last chunk": (CHUNKED + b"5\r\nshort\r\n", Broken),
    "interim only": (b"HTTP/1.1 100 Continue\r\n\r\n", Broken),
    "garbage": (b"SSH-2.0-OpenSSH_9.2\r\n", BadReply),
    "bad chunk": (CHUNKED + b"zz\r\nshort\r\n0\r\n\r\n", BadReply),
    "both lengths": (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n", BadReply),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", BadReply),
    "other protocol": (b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", BadReply),
    "one long header": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70 * KIB + b"\r\nContent-Length: 0\r\n\r\n",
        BadReply,
    ),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300 * KIB, BadReply),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 40 * KIB, BadReply),
    "endless interims": (b"HTTP/1.1 100 C\r\nA: b\r\n\r\n" * 20 * KIB, BadReply),
    "endless trailer": (CHUNKED + b"0\r\nX: " + b"x" * 600 * KIB, BadReply),
    "endless extension": (CHUNKED + b"3;" + b"x" * 600 * KIB, BadReply),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_faults(case: str) -> None:
    reply, error = FAULTS[case]
    connections = 0

    async def play(peer: Peer) -> None:
        nonlocal connections
        connections = peer.number
        await playing(reply)(peer)

    async with serving(play) as client:
        with pytest.raises(error) as caught:
            await generate(client).call(b"{}")
        assert caught.value.sent
        assert client.address in str(caught.value)
        assert "127.0.0.1" not in caught.value.public
        assert (client.open, connections) == (0, 1)  # a fresh connection is never tried again
        with pytest.raises(error):
            await drain(generate(client))
        assert client.open == 0


async def test_a_broken_stream_gives_what_came_before() -> None:
    async with serving(playing(CHUNKED + b"3\r\nabc\r\n")) as client:
        with await generate(client).open(b"{}") as stream:
            assert await stream.read() == b"abc"
            for _ in range(2):
                with pytest.raises(Broken):
                    await stream.read()


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", CHUNKED + b"7d0\r\n" + b"x" * 2000],
    ids=["at its head", "chunked"],
)
async def test_a_reply_too_large(reply: bytes) -> None:
    async with serving(playing(reply, stay=True), max_body=1999) as client:
        with pytest.raises(ReplyTooLarge):
            await generate(client).call(b"{}")
        assert client.open == 0


@pytest.mark.parametrize("head", [CHUNKED + b"1000001\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_reply_without_an_end(head: bytes) -> None:
    async with serving(playing(head + b"x" * (16 * MIB + 1), stay=True)) as client:
        with pytest.raises(ReplyTooLarge, match="of no stated length"):
            await generate(client).call(b"{}")
        assert client.open == 0


async def test_a_stream_larger_than_its_reader_takes() -> None:
    async with serving(playing(CHUNKED + b"7d0\r\n" + b"x" * 2000, stay=True), max_body=1999) as client:
        for limit in (1999, 0):
            stream = await generate(client).open(b"{}")
            with pytest.raises(ReplyTooLarge):
                await stream.all(limit)
            assert client.open == 0
        with await generate(client).open(b"{}") as stream:
            assert len(await stream.read()) == 2000


async def test_an_exchange_leaves_nothing_to_the_garbage_collector() -> None:
    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            peer.send(OK)

    async with serving(play) as client:
        gc.collect()
        before = streams()
        gc.disable()
        try:
            for _ in range(10):
                await generate(client).call(b"{}")
                (await generate(client).open(b"{}")).close()
            assert streams() == before
        finally:
            gc.enable()


@pytest.mark.parametrize("answers", [True, False])
async def test_a_stale_connection_is_tried_again_once(answers: bool) -> None:
    bodies = []

    async def play(peer: Peer) -> None:
        bodies.append((peer.number, (await peer.request())[1]))
        if peer.number == 1 or answers:
            peer.send(OK)
            bodies.append((peer.number, (await peer.request())[1]))  # and closes

    async with serving(play) as client:
        target = generate(client)
        await target.call(b"first")
        if answers:
            assert (await target.call(b"second")).body == b"ok"
        else:
            with pytest.raises(Broken):
                await target.call(b"second")
        assert bodies == [(1, b"first"), (1, b"second"), (2, b"second")]


async def test_a_kept_connection_that_broke_within_an_answer_is_not_tried_again() -> None:
    connections = 0

    async def play(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.request()
        peer.send(OK)
        await peer.request()
        peer.send(b"H")

    async with serving(play) as client:
        await generate(client).call(b"")
        with pytest.raises(Broken):
            await generate(client).call(b"")
        assert connections == 1


async def test_a_kept_connection_that_ends_late_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may have run the request until then."""
    monkeypatch.setattr("upstream.http.STALE", 0.0)
    asked = []

    async def play(peer: Peer) -> None:
        asked.append(peer.number)
        await peer.request()
        peer.send(OK)
        await peer.request()

    async with serving(play) as client:
        await generate(client).call(b"")
        with pytest.raises(Broken):
            await generate(client).call(b"")
        assert asked == [1]


async def test_after_a_stale_connection_no_connection_is_broken() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(1, reader, writer)
        await peer.request()
        peer.send(OK)
        await peer.request()
        server.close()
        await loop.run_in_executor(None, listener.close)
        writer.close()
        closed.set()

    server = await asyncio.start_server(play, sock=listener)
    client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    await generate(client).call(b"")
    with pytest.raises(Broken) as caught:  # what was sent first may have been seen: not ConnectFailed
        await generate(client).call(b"")
    assert isinstance(caught.value.__cause__, ConnectFailed)
    assert caught.value.sent
    await closed.wait()


async def test_bytes_on_an_idle_connection_end_it() -> None:
    gone = asyncio.Event()
    speak = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(OK)
        await speak.wait()
        peer.send(OK)
        await peer.gone()
        gone.set()

    async with serving(play) as client:
        await get(client).call()
        assert client.idle == 1
        speak.set()
        await gone.wait()
        assert (client.idle, client.open) == (0, 0)


async def test_an_answer_before_the_request_is_written() -> None:
    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.send(b"HTTP/1.1 400 Too large\r\nContent-Length: 2\r\n\r\nno")
        await finished.wait()

    finished = asyncio.Event()
    async with serving(play) as client:
        reply = await generate(client).call(bytes(32 * MIB))
        assert (reply.status, reply.body) == (400, b"no")
        assert client.open == 0  # the rest of the request will never be read
        finished.set()


async def test_a_large_body_both_ways() -> None:
    async def play(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with serving(play) as client:
        for size in (0, 1, MIB - 1, MIB, 3 * MIB):
            body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            assert (await generate(client).call(body)).body == body
        bodies = [b"%d" % n for n in range(200)]
        replies = await asyncio.gather(*(generate(client).call(body) for body in bodies))
        assert [reply.body for reply in replies] == bodies
        assert client.in_use == 0
        assert client.idle == 64  # max_idle


async def test_a_stream_is_read_as_it_arrives() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(CHUNKED)
        for parts in ([b"a"], [b"b", b"c"]):
            await asked.get()
            peer.send(b"".join(b"1\r\n%b\r\n" % part for part in parts))
        await asked.get()
        peer.send(b"0\r\n\r\n")
        await peer.gone()

    asked: asyncio.Queue[None] = asyncio.Queue()
    async with serving(play) as client:
        stream = await generate(client).open(b"{}")
        assert stream.headers == {b"transfer-encoding": b"chunked"}
        assert client.in_use == 1
        for expected in (b"a", b"bc", b"", b""):
            asked.put_nowait(None)
            assert await stream.read() == expected
        assert (client.in_use, client.idle) == (0, 1)
        stream.close()
        stream.close()
        assert client.idle == 1


async def test_a_closed_stream_ends_its_connection_and_wakes_its_reader() -> None:
    gone = asyncio.Event()

    async def play(peer: Peer) -> None:
        await playing(CHUNKED + b"1\r\na\r\n", stay=True)(peer)
        gone.set()

    async with serving(play) as client:
        stream = await generate(client).open(b"{}")
        assert await stream.read() == b"a"
        reader = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        stream.close()
        stream.close()
        with pytest.raises(Broken):
            await reader
        await gone.wait()
        assert client.open == 0


async def test_backpressure_holds_the_server_and_not_its_silence() -> None:
    total, piece = 48 * MIB, 64 * KIB

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(CHUNKED)
        for _ in range(total // piece):
            peer.send(b"%x\r\n%b\r\n" % (piece, bytes(piece)))
            await peer.writer.drain()
        sent.set_result(None)
        peer.send(b"0\r\n\r\n")
        await peer.gone()

    sent = asyncio.get_running_loop().create_future()
    async with serving(play, max_buffer=256 * KIB) as client:
        with await generate(client).open(b"{}", read_timeout=0.1) as stream:
            done, _ = await asyncio.wait([sent], timeout=0.3)  # longer than the silence allowed
            assert not done
            received = 0
            while part := await stream.read():
                received += len(part)
                assert len(part) <= 512 * KIB  # max_buffer, and one receive
            assert received == total
        assert client.idle == 1


async def test_cancelled_calls_end_their_connections() -> None:
    heard: asyncio.Queue[None] = asyncio.Queue()
    gone: asyncio.Queue[None] = asyncio.Queue()

    async def play(peer: Peer) -> None:
        head, _ = await peer.request()
        if b"/stream" in head:
            peer.send(CHUNKED)
        heard.put_nowait(None)
        await peer.gone()
        gone.put_nowait(None)

    async def read(target: Target) -> None:
        with await target.open() as stream:
            await stream.read()

    async with serving(play) as client:
        silent, streaming = client.target("POST", "/silent"), client.target("POST", "/stream")
        for work in (silent.call, silent.open, lambda: read(streaming)):
            task: asyncio.Task[Any] = asyncio.create_task(work())
            await heard.get()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert client.open == 0
            await gone.get()


async def test_cancelled_while_connecting() -> None:
    async with serving(lambda peer: peer.gone(), https=True) as client:  # it never shakes hands
        task = asyncio.create_task(get(client).call())
        await asyncio.wait([task], timeout=0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.open == 0


async def test_cancelled_as_the_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        task.cancel()

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    async with serving(playing(OK)) as client:
        task = asyncio.create_task(get(client).call())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.open == 0


async def test_a_thousand_abandoned_streams_leave_nothing() -> None:
    gone = 0
    everyone = asyncio.Event()

    async def play(peer: Peer) -> None:
        nonlocal gone
        await playing(CHUNKED + b"1\r\na\r\n", stay=True)(peer)
        gone += 1
        if gone == 1000:
            everyone.set()

    async def abandon(target: Target, how: int) -> None:
        stream = await target.open(b"{}", deadline=soon(60))
        if how == 0:
            stream.close()
        elif how == 1:
            await stream.read()
            stream.close()
        else:
            await stream.read()
            reader = asyncio.create_task(stream.read())
            await asyncio.sleep(0)
            reader.cancel()

    async with serving(play) as client:
        before, held = len(asyncio.all_tasks()), streams()
        for batch in range(20):
            await asyncio.gather(*(abandon(generate(client), (batch + n) % 3) for n in range(50)))
        await everyone.wait()
        assert (client.open, client.idle) == (0, 0)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) <= before
    gc.collect()
    assert streams() <= held


@pytest.mark.parametrize(
    ("reply", "phase"),
    [(b"", "head"), (b"HTTP/1.1 200 OK\r\nContent-", "head"), (CHUNKED + b"1\r\na\r\n", "body")],
)
async def test_deadlines(reply: bytes, phase: str) -> None:
    async with serving(playing(reply, stay=True)) as client:
        with pytest.raises(DeadlinePassed) as caught:
            await generate(client).call(b"{}", deadline=soon(0.05))
        assert (caught.value.phase, caught.value.sent) == (phase, True)
        assert client.open == 0
        with pytest.raises(DeadlinePassed) as caught:
            await drain(generate(client), deadline=soon(0.05))
        assert (caught.value.phase, client.open) == (phase, 0)


async def test_a_reused_connection_keeps_each_deadline() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(OK)
        await peer.request()
        peer.send(OK)
        await playing(b"", stay=True)(peer)

    async with serving(play) as client:
        await get(client).call(deadline=soon(60))
        await get(client).call()
        start = soon(0)
        with pytest.raises(DeadlinePassed):  # earlier than the timer that the first call left
            await get(client).call(deadline=soon(0.05))
        assert soon(0) - start < 5


@pytest.mark.parametrize("max_buffer", [0, 1000], ids=["after a pause", "read at once"])
async def test_silence(max_buffer: int) -> None:
    async with serving(playing(CHUNKED + b"1\r\na\r\n", stay=True), max_buffer=max_buffer) as client:
        with await generate(client).open(b"{}", deadline=soon(60), read_timeout=0.05) as stream:
            assert await stream.read() == b"a"
            with pytest.raises(DeadlinePassed) as caught:
                await stream.read()
        assert (caught.value.phase, client.open) == ("silence", 0)


async def test_nothing_is_sent_past_the_deadline() -> None:
    requests = 0

    async def play(peer: Peer) -> None:
        nonlocal requests
        while True:
            await peer.request()
            requests += 1
            peer.send(OK)

    async with serving(play) as client:
        for kept in (0, 1):
            with pytest.raises(DeadlinePassed) as caught:
                await get(client).call(deadline=soon(-1))
            assert (caught.value.phase, caught.value.sent, client.open) == ("connect", False, kept)
            await get(client).call(deadline=soon(60))
        assert requests == 2


async def test_connecting_takes_too_long() -> None:
    async with serving(lambda peer: peer.gone(), https=True, connect_timeout=0.05) as client:
        with pytest.raises(ConnectFailed) as failed:
            await get(client).call(deadline=soon(60))
        assert not failed.value.sent
        with pytest.raises(DeadlinePassed) as passed:
            await get(client).call(deadline=soon(0.02))
        assert (passed.value.phase, passed.value.sent, client.open) == ("connect", False, 0)


async def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    for url in (client.address, "no-such-host.invalid"):
        with pytest.raises(ConnectFailed) as caught:
            await get(Client(f"http://{url}")).call()
        assert not caught.value.sent
        assert url in str(caught.value)


async def test_idle_connections_expire() -> None:
    gone = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        peer.send(OK)
        await peer.gone()
        gone.set()

    async with serving(play, idle_timeout=0.05) as client:
        await get(client).call(deadline=soon(60))
        assert client.idle == 1
        await gone.wait()
        assert (client.idle, client.open) == (0, 0)


async def test_close_breaks_what_is_under_way() -> None:
    heard = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        heard.set()
        await peer.gone()

    async with serving(play) as client:
        task = asyncio.create_task(get(client).call())
        await heard.wait()
        client.close()
        with pytest.raises(Broken):
            await task
        with pytest.raises(ConnectFailed):
            await get(client).call()


async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with serving(playing(OK), host="::1") as client:
        assert client.address.startswith("[::1]:")
        assert (await get(client).call()).body == b"ok"


async def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    making = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    naming = ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, [openssl, *making, *naming], check=True, capture_output=True)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(cert, key)

    async def play(peer: Peer) -> None:
        while True:
            _, body = await peer.request()
            peer.send(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    trust = ssl.create_default_context(cafile=str(cert))
    async with serving(play, server_tls=server_tls, tls=trust) as client:
        for body in (b"small", bytes(MIB)):
            assert (await generate(client).call(body)).body == body
        assert (client.open, client.idle) == (1, 1)
    async with serving(play, server_tls=server_tls) as stranger:
        with pytest.raises(ConnectFailed):
            await generate(stranger).call(b"")


@pytest.mark.parametrize(
    "url",
    ["triton:8000", "ftp://a", "http://", "http://u:p@a", "http://a/?q", "http://a/#f", "http://a:99999"],
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Client(url)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("get", "/", {}),
        ("GET", "/a b", {}),
        ("GET", "/a\r\nX: y", {}),
        ("GET", "/é", {}),
        ("GET", "relative", {}),
        ("GET", "/", {"A": "b\r\nC: d"}),
        ("GET", "/", {"A:": "b"}),
        ("GET", "/", {"": "b"}),
    ],
)
def test_bad_heads(method: str, path: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^not a "):
        Client("http://a").target(method, path, headers)
