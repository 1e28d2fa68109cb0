"""HTTP by hand over one socket, for what no well-behaved client would send."""

import json
import re
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.gateway import Conch

ERROR_KEYS = {"message", "type", "param", "code"}
CRASH = re.compile(r"a bug|Traceback|Exception|never retrieved|never awaited")


class Answer(NamedTuple):
    """One answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def error(self, status: int, param: str | None = None) -> dict[str, Any]:
        """The error object, once it has been found to be in the one shape."""
        assert self.status == status, self
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"].startswith("req_")
        body = self.json
        assert body.keys() == {"error"}
        error: dict[str, Any] = body["error"]
        assert error.keys() == ERROR_KEYS, error
        assert error["param"] == param, error
        message = error["message"]
        assert message.endswith("."), message
        assert len(message) < 400, message
        return error


class Wire:
    """A connection that sends bytes as they are and reads answers one by one."""

    def __init__(self, url: str, timeout: float = 10.0, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.host = f"{parts.hostname}:{parts.port}"
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect((parts.hostname, parts.port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gone, at once."""
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Every byte, as given."""
        self.socket.sendall(data)

    def request(self, method: str, path: str, body: bytes = b"", /, **headers: str) -> None:
        """A request; `content_type="…"` is the header content-type, and a length is added to a body."""
        self.send(head(method, path, self.host, len(body) if body or method == "POST" else None, **headers) + body)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, whole, past any 100 Continue. `method` is that of its request. EOFError: there is none."""
        status, headers = self.answer_head()
        while status == 100:
            status, headers = self.answer_head()
        if method == "HEAD" or status == 304:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(iter(self.chunk, b"")))
        return Answer(status, headers, self._exactly(int(headers["content-length"])))

    def answer_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer, or of a 100 Continue."""
        line = self._line()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while field := self._line():
            name, _, value = field.decode().partition(": ")
            assert name not in headers, name
            headers[name] = value
        return int(line.split()[1]), headers

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; b"" at its end."""
        data = self._exactly(int(self._line(), 16))
        assert self._line() == b""
        return data

    def read(self, size: int) -> bytes:
        """The next so many bytes. EOFError: there are fewer."""
        return self._exactly(size)

    def rest(self) -> bytes:
        """Whatever still comes until the server closes."""
        return self._file.read()

    def ended(self) -> bool:
        """Whether the server closes now, and has nothing more to say."""
        return self._file.read(1) == b""

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError(line)
        return line[:-2]

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError(data)
        return data


def head(method: str, path: str, host: str, length: int | None = None, /, **headers: str) -> bytes:
    """The head of a request, up to the empty line."""
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if length is not None:
        lines.append(f"content-length: {length}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {key}"}


def chat(content: str, model: str = "vllm", **fields: Any) -> bytes:
    """The body of a chat request with one user message."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **fields}).encode()


def script(*pieces: str, model: str = "vllm", stream: bool = False, **how: Any) -> bytes:
    """The body of a chat request that has a contract model say these pieces, paced as `how` says."""
    return chat("script: " + json.dumps({"pieces": pieces, **how}), model, stream=stream, max_tokens=100_000)


def quiet(conch: Conch, key: str) -> None:
    """Assert that the gateway serves and has logged no crash; a failing model's line shows how far the log is."""
    with Wire(conch.url) as wire:
        wire.request("POST", "/v1/chat/completions", script("x", fail_after=0), **bearer(key))
        answer = wire.answer()
    answer.error(502)
    await_true(lambda: any(answer.headers["x-request-id"] in line for line in conch.log))
    log = "".join(conch.log)
    assert not CRASH.search(log), log


def await_true(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Look until it holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.005)
