"""Fetches what a stranger's URL points at, or posts to it: public addresses only, bounded in size and time.

aiohttp's home.
"""

import asyncio
import binascii
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from yarl import URL

Address = IPv4Address | IPv6Address

_PORTS: Final = frozenset({80, 443})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_URL_LENGTH: Final = 8192
_MEDIA_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,9}")
_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # IETF protocol assignments: all of it, whatever this Python's is_global knows
            "192.88.99.0/24",  # 6to4 relays
            "2001::/23",  # Teredo, ORCHID and other special assignments
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",  # documentation
        ),
    )
)
_GLOBAL_UNICAST: Final = ip_network(
    "2000::/3"
)  # leaves out loopback, ULA, link-local, multicast, IPv4-mapped and NAT64


class FetchError(Exception):
    """The URL cannot be used; the message is one sentence, fit for the client that sent it."""


class Answered(NamedTuple):
    """The status of an answer whose body nobody reads, and its Retry-After in seconds, if it has one in seconds."""

    status: int
    retry_after: int | None


class Fetched(NamedTuple):
    """A body, with its media type in lower case and without parameters."""

    body: bytes
    media_type: str


def anywhere(address: Address, port: int) -> bool:
    """For the URLs of who may reach every address that this machine reaches."""
    return True


def is_public(address: Address, port: int) -> bool:
    """Whether a stranger may have us connect there: a globally routed unicast address, on port 80 or 443.

    By the IANA special-purpose registries (RFC 6890); of IPv6 only 2000::/3, so no form with an IPv4 address inside.
    """
    if port not in _PORTS or not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def check_target(url: str, *, private: bool) -> None:
    """Whether something may be posted to a URL, as far as it tells itself. Raises FetchError."""
    target = _checked(url)
    if private:
        return
    if target.scheme != "https":
        raise FetchError("The URL must begin with https://.")
    try:
        public = is_public(ip_address(target.host or ""), target.port or 0)
    except ValueError:  # a name: where it leads is judged at each connection
        public = target.port in _PORTS
    if not public:
        raise FetchError(str(_Refused()))


class Fetcher:
    """One aiohttp session, made at the first fetch and of that event loop: no cookies, no proxies, no pooling."""

    def __init__(self, *, allowed: Callable[[Address, int], bool] = is_public) -> None:
        """`allowed` judges every address and port at the moment a socket is made for it, redirects included."""
        self._allowed = allowed
        self._session: ClientSession | None = None

    async def fetch(
        self, url: str, *, limit: int, timeout: float = 10.0, redirects: int = 3, accept: str = "image/"
    ) -> Fetched:
        """The body behind an http(s) URL: at most `limit` bytes, of a media type that begins with `accept`.

        `timeout` is in seconds, for everything together. Raises FetchError.
        """
        async with _bounded(timeout):
            return await self._follow(_checked(url), limit, redirects, accept)

    async def post(self, url: str, body: bytes, headers: dict[str, str], *, timeout: float) -> Answered:
        """Sends a small body; redirects are not followed, and of the answer no more is read than its head.

        `timeout` is in seconds, for everything together. Raises FetchError.
        """
        own = {"Accept-Encoding": "identity", "User-Agent": "conch"}
        async with _bounded(timeout):
            opened = self._opened().post(_checked(url), data=body, headers=own | headers, allow_redirects=False)
            async with opened as response:
                after = response.headers.get("Retry-After", "")
                return Answered(response.status, int(after) if _SECONDS.fullmatch(after) else None)

    async def close(self) -> None:
        """Closes what is open; the next fetch would open anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _follow(self, url: "URL", limit: int, redirects: int, accept: str) -> Fetched:
        headers = {"Accept": f"{accept}*", "Accept-Encoding": "identity", "User-Agent": "conch"}
        for _ in range(redirects + 1):
            async with self._opened().get(url, headers=headers, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await _body(response, limit, accept)
                url = _checked(location, base=url)
        raise FetchError(f"The URL redirects more than {redirects} times.")

    def _opened(self) -> "ClientSession":
        if self._session is None:
            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=aiohttp.ThreadedResolver(),
                    use_dns_cache=False,
                    force_close=True,
                    socket_factory=self._socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The one gate: aiohttp connects this very socket to this very address, however its name was resolved."""
        family, kind, protocol, _, (host, port, *_) = info
        try:
            address = ip_address(host)
        except ValueError:
            raise _Refused from None
        if not self._allowed(address, port):
            raise _Refused
        return socket.socket(family, kind, protocol)


@asynccontextmanager
async def _bounded(timeout: float) -> AsyncIterator[None]:
    """What goes wrong within, in so many seconds, as a FetchError."""
    if "aiohttp" not in sys.modules:
        await asyncio.to_thread(import_module, "aiohttp")  # a tenth of a second, for which nobody else is to wait
    import aiohttp

    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise FetchError(f"The URL did not answer in full within {timeout:g} seconds.") from None
    except aiohttp.ClientConnectorCertificateError:
        raise FetchError("The URL's host has no valid certificate.") from None
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, _Refused):
            raise FetchError(str(error.os_error)) from None
        raise FetchError("The URL's host cannot be reached.") from None
    except aiohttp.InvalidURL:
        raise FetchError("The URL is not valid.") from None
    except (aiohttp.ClientError, OSError, ValueError):
        raise FetchError("The URL's host gave no valid answer.") from None


class _Refused(OSError):
    def __str__(self) -> str:
        return "The URL must lead to a public address, on port 80 or 443."


def read_data_url(url: str, *, limit: int) -> Fetched:
    """The bytes of a strictly base64 `data:` URL (RFC 2397), at most `limit` of them. Raises FetchError."""
    head, comma, payload = url.partition(",")
    scheme, _, described = head.partition(":")
    media_type, *parameters = described.split(";")
    if scheme.lower() != "data" or not comma:
        raise FetchError("The data: URL is not valid.")
    if not parameters or parameters[-1].strip().lower() != "base64":
        raise FetchError("The data: URL must be base64: data:image/png;base64,….")
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise FetchError("The data: URL names no media type.")
    if len(payload) // 4 * 3 > limit + 2:
        raise FetchError(_too_large(limit))
    try:
        body = binascii.a2b_base64(payload.encode("ascii"), strict_mode=True)
    except ValueError:
        raise FetchError("The data: URL's content is not valid base64.") from None
    if not body:
        raise FetchError("The data: URL is empty.")
    if len(body) > limit:
        raise FetchError(_too_large(limit))
    return Fetched(body, media_type.lower())


def _checked(text: str, base: "URL | None" = None) -> "URL":
    from yarl import URL

    if len(text) > _URL_LENGTH:
        raise FetchError(f"The URL is longer than {_URL_LENGTH} characters.")
    try:
        url = URL(text) if base is None else base.join(URL(text))
        host, port = url.host, url.port
    except ValueError:
        raise FetchError("The URL is not valid.") from None
    if url.scheme not in ("http", "https") or not host or not port:
        raise FetchError("The URL must begin with https:// or http:// and name a host.")
    if url.user is not None or url.password is not None:
        raise FetchError("The URL must not hold a user name or a password.")
    return url.with_fragment(None)


async def _body(response: "ClientResponse", limit: int, accept: str) -> Fetched:
    if response.status != 200:
        raise FetchError(f"The URL answered with status {response.status}.")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not media_type.startswith(accept) or not _MEDIA_TYPE.fullmatch(media_type):
        raise FetchError(f"The URL's content is not of a type {accept}*.")
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise FetchError("The URL's content is compressed, though it was asked for as it is.")
    if (response.content_length or 0) > limit:
        raise FetchError(_too_large(limit))
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise FetchError(_too_large(limit))
    return Fetched(bytes(body), media_type)


def _too_large(limit: int) -> str:
    return f"The URL's content is larger than {limit} bytes."
