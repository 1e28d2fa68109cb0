"""Fetching from strangers' URLs: what is let through, what is refused before a byte is sent, and every bound."""

import asyncio
import base64
import gzip
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest
from aiohttp import web

from upstream.fetch import Address, Fetcher, FetchError, is_public, read_data_url

PICTURE = b"\x89PNG" + bytes(range(256)) * 40
PNG = {"Content-Type": "image/png"}
Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A real server on 127.0.0.1, and what has reached it."""

    def __init__(self) -> None:
        self.seen: list[web.BaseRequest] = []
        self.routes: dict[str, Serve] = {}
        self.url = ""

    def answer(self, path: str, **response: Any) -> str:
        async def serve(request: web.Request) -> web.StreamResponse:
            return web.Response(**response)

        self.routes[path] = serve
        return self.url + path

    def redirect(self, path: str, target: str, status: int = 302) -> str:
        return self.answer(path, status=status, headers={"Location": target})

    async def handle(self, request: Any) -> web.StreamResponse:
        self.seen.append(request)
        return await self.routes[request.path](request)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = web.Server(site.handle)
    runner = web.ServerRunner(server)
    await runner.setup()
    tcp = web.TCPSite(runner, "127.0.0.1", 0)
    await tcp.start()
    site.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


def loopback(address: Address, port: int) -> bool:
    return address.is_loopback


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    """May reach this machine, and nothing else."""
    fetcher = Fetcher(allowed=loopback)
    yield fetcher
    await fetcher.close()


@pytest.fixture
async def default() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher()
    yield fetcher
    await fetcher.close()


@contextmanager
def listening(host: str) -> Iterator[tuple[socket.socket, int]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.setblocking(False)
        yield server, server.getsockname()[1]


PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
NOT_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1"),
    *("127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.170"),
    *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"),
    *("::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1"),
    *("2001::1", "2001:0:7f00:1::1", "2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address: str) -> None:
    assert is_public(ip_address(address), 443)
    assert is_public(ip_address(address), 80)
    for port in (0, 22, 25, 6379, 8000, 8080, 65535):
        assert not is_public(ip_address(address), port)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address), 443)


class TestDefaultRefuses:
    """With nothing injected, whatever names this machine or its network."""

    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254"),
            *("100.64.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[fe80::1]"),
            *("[2002:7f00:1::]", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001", "0x7f.0.0.1"),
            *("0177.0.0.1", "017700000001", "127.1", "127.0.1", "0", "①②⑦.⓪.⓪.①", "127。0。0。1", "127.0.0.1."),
        ],
    )
    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_a_host(self, default: Fetcher, host: str, scheme: str) -> None:
        with pytest.raises(FetchError):
            await default.fetch(f"{scheme}://{host}/a.png", limit=1000, timeout=5)

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_not_even_a_connection_is_made(self, host: str) -> None:
        fetcher = Fetcher(allowed=lambda address, port: is_public(address, 80))  # the port alone would stop it
        with listening(host) as (server, port):
            for name in (f"[{host}]" if ":" in host else host, "localhost", "2130706433", "[::ffff:127.0.0.1]"):
                with pytest.raises(FetchError):
                    await fetcher.fetch(f"http://{name}:{port}/", limit=1000, timeout=5)
            with pytest.raises(BlockingIOError):
                server.accept()
        await fetcher.close()

    async def test_a_port(self, default: Fetcher) -> None:
        with pytest.raises(FetchError, match="public address, on port 80 or 443"):
            await default.fetch("http://1.1.1.1:8080/", limit=1000, timeout=5)

    async def test_a_redirect_to_itself(self, site: Site) -> None:
        """The first hop stands for a public host: its port is the one let through."""
        port = int(site.url.rpartition(":")[2])
        fetcher = Fetcher(allowed=lambda address, number: number == port or is_public(address, number))
        for target in (
            "http://127.0.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "https://[::1]/",
            "//localhost/x",
        ):
            with pytest.raises(FetchError, match="must lead to a public address"):
                await fetcher.fetch(site.redirect("/away", target), limit=1000)
        await fetcher.close()

    async def test_a_name_that_changes_its_address(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """DNS rebinding: the address that is judged is the one that is connected to, each time."""
        port = int(site.url.rpartition(":")[2])
        answers = ["127.0.0.1", "127.0.0.2"]
        judged: list[str] = []

        def resolve(host: str, *rest: Any, **more: Any) -> list[Any]:
            assert host == "rebind.test"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

        def allowed(address: Address, number: int) -> bool:
            judged.append(str(address))
            return str(address) == "127.0.0.1"

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        site.answer("/a.png", body=PICTURE, headers=PNG)
        fetcher = Fetcher(allowed=allowed)
        url = f"http://rebind.test:{port}/a.png"
        assert (await fetcher.fetch(url, limit=100_000)).body == PICTURE
        with pytest.raises(FetchError, match="must lead to a public address"):
            await fetcher.fetch(url, limit=100_000)
        assert judged == ["127.0.0.1", "127.0.0.2"]
        await fetcher.close()


class TestFetch:
    async def test_a_picture(self, site: Site, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        url = site.answer("/a.png", body=PICTURE, headers={"Content-Type": "Image/PNG; x=y", "Set-Cookie": "a=b"})
        for _ in range(2):
            assert await fetcher.fetch(url + "?q=1#part", limit=len(PICTURE)) == (PICTURE, "image/png")
        headers = site.seen[1].headers
        assert headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects(self, site: Site, fetcher: Fetcher, status: int) -> None:
        site.answer("/a.png", body=PICTURE, headers=PNG)
        url = site.redirect("/1", site.redirect("/2", "/3?x=1", status), status)
        site.redirect("/3", "a.png", status)
        assert (await fetcher.fetch(url, limit=100_000)).body == PICTURE
        with pytest.raises(FetchError, match="redirects more than 2 times"):
            await fetcher.fetch(url, limit=100_000, redirects=2)

    @pytest.mark.parametrize(
        "target",
        [
            "file:///etc/hostname",
            "ftp://127.0.0.1/",
            "data:image/png;base64,AAAA",
            "http://a:b@127.0.0.1/",
            "mailto:a@b.test",
        ],
    )
    async def test_redirects_elsewhere(self, site: Site, fetcher: Fetcher, target: str) -> None:
        with pytest.raises(FetchError):
            await fetcher.fetch(site.redirect("/1", target), limit=1000)
        assert len(site.seen) == 1

    @pytest.mark.parametrize(
        "url",
        [
            *("", "a.png", "/a.png", "//127.0.0.1/", "http://", "http:///a", "https://:443/", "http://127.0.0.1:x/"),
            *(
                "http://127.0.0.1:99999/",
                "http://[::1/",
                "ftp://127.0.0.1/",
                "file:///etc/hostname",
                "gopher://127.0.0.1/",
            ),
            *("http://me@127.0.0.1/", "http://me:secret@127.0.0.1/", "http://127.0.0.1/" + "a" * 9000, "http://a b/"),
            *("http://127.0.0.1\\@1.1.1.1/", "http://127.0.0.1:0/", "http://" + "a" * 300 + ".test/", "http://..../"),
        ],
    )
    async def test_bad_urls(self, fetcher: Fetcher, url: str) -> None:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(url, limit=1000, timeout=5)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("response", "message"),
        [
            ({"status": 404, "body": b"x", "headers": PNG}, "status 404"),
            ({"status": 206, "body": b"x", "headers": PNG}, "status 206"),
            ({"status": 304, "headers": PNG}, "status 304"),
            ({"status": 302}, "status 302"),
            ({"body": b"x", "headers": {"Content-Type": "text/html"}}, "not of a type image/"),
            ({"body": b"x", "headers": {"Content-Type": "image/"}}, "not of a type image/"),
            ({"body": gzip.compress(bytes(10**6)), "headers": {**PNG, "Content-Encoding": "gzip"}}, "compressed"),
            ({"body": bytes(1001), "headers": PNG}, "larger than 1000 bytes"),
        ],
    )
    async def test_bad_answers(self, site: Site, fetcher: Fetcher, response: dict[str, Any], message: str) -> None:
        with pytest.raises(FetchError, match=message):
            await fetcher.fetch(site.answer("/a.png", **response), limit=1000)

    async def test_a_body_without_a_length_is_bounded_as_it_comes(self, site: Site, fetcher: Fetcher) -> None:
        sent = 0

        async def endless(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse(headers=PNG)
            await response.prepare(request)
            while sent < 1 << 30:
                await response.write(bytes(65_536))
                sent += 65_536
            return response

        site.routes["/endless"] = endless
        with pytest.raises(FetchError, match="larger than 200000 bytes"):
            await fetcher.fetch(site.url + "/endless", limit=200_000)
        assert sent < 1 << 26

    async def test_time_is_bounded_in_all(self, site: Site, fetcher: Fetcher) -> None:
        released = asyncio.Event()

        async def dripping(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers=PNG)
            await response.prepare(request)
            await response.write(b"x")
            await released.wait()
            return response

        site.routes["/drip"] = dripping
        with pytest.raises(FetchError, match=r"within 0\.2 seconds"):
            await fetcher.fetch(site.url + "/drip", limit=1000, timeout=0.2)
        released.set()

    @pytest.mark.parametrize(
        "answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nx"]
    )
    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_not_http(self, fetcher: Fetcher, answer: bytes, scheme: str) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(FetchError) as caught:
                await fetcher.fetch(f"{scheme}://127.0.0.1:{port}/", limit=1000, timeout=5)
        assert "127.0.0.1" not in str(caught.value)

    async def test_nobody_there(self, fetcher: Fetcher) -> None:
        with listening("127.0.0.1") as (_, port):
            pass
        with pytest.raises(FetchError, match="cannot be reached"):
            await fetcher.fetch(f"http://127.0.0.1:{port}/", limit=1000)
        with pytest.raises(FetchError, match="cannot be reached"):
            await fetcher.fetch("http://nobody.invalid/", limit=1000)


class TestDataUrl:
    @pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:Image/PNG;charset=x;BASE64,"])
    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_good(self, head: str, size: int) -> None:
        body = bytes(range(256)) * 4
        url = head + base64.b64encode(body[:size]).decode()
        assert read_data_url(url, limit=size) == (body[:size], "image/png")

    @pytest.mark.parametrize(
        "url",
        [
            *("", "data:", "data:,", "data:image/png;base64", "data:image/png,AAAA", "http:image/png;base64,AAAA"),
            *(
                "data:;base64,AAAA",
                "data:png;base64,AAAA",
                "data:image/p ng;base64,AAAA",
                "data:image/png;base64;x,AAAA",
            ),
            *("data:image/png;base64,", "data:image/png;base64,AAA", "data:image/png;base64,AA==AAAA"),
            *("data:image/png;base64,AAAA\n", "data:image/png;base64,AA AA", "data:image/png;base64,__--"),
            *("data:image/png;base64,éééé", "data:image/png;base64,%41AAA", "data:image/png;base64,=AAA"),
        ],
    )
    def test_bad(self, url: str) -> None:
        with pytest.raises(FetchError):
            read_data_url(url, limit=1000)

    @pytest.mark.parametrize("size", [1001, 1002, 1003, 10**6])
    def test_too_large(self, size: int) -> None:
        with pytest.raises(FetchError, match="larger than 1000 bytes"):
            read_data_url("data:image/png;base64," + base64.b64encode(bytes(size)).decode(), limit=1000)
