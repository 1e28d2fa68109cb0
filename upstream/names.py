"""The addresses behind a name: resolved beside the requests, so that they are spread over all and follow changes."""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

log = logging.getLogger("conch")

Resolve = Callable[[str], Awaitable[list[str]]]

RESOLVE_TIMEOUT = 5.0


async def resolve(name: str) -> list[str]:
    """What the system's resolver says, hosts file and all: IPv4 and IPv6 addresses. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_name(url: str) -> bool:
    """Whether the host of an address has to be looked up."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def endpoints(addresses: list[str]) -> list[str | None]:
    """The servers behind a name, by the address to reach each at; None: one, reached by the name itself.

    One address of each kind, IPv4 and IPv6, is one server, such as localhost. Where several servers have both kinds,
    their IPv4 addresses count, so that none is counted twice.
    """
    kinds = _kinds(addresses)
    return [None] if max(map(len, kinds)) < 2 else [*_counted(kinds)]


def _kinds(addresses: list[str]) -> tuple[set[str], set[str]]:
    """Those of IPv4, and those of IPv6."""
    v6 = {each for each in addresses if ":" in each}
    return set(addresses) - v6, v6


def _counted(kinds: tuple[set[str], set[str]]) -> list[str]:
    return sorted(kinds[0] or kinds[1])


class Names:
    """The last known endpoints of each name, and what they are now."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._known: dict[str, tuple[str, ...]] = {}

    async def look(self, name: str) -> list[str | None] | None:
        """The endpoints of a name whose addresses have changed since the last look; else, or without an answer, None.

        The one address of a name that had another before is told as such: connections to the old one may be kept.
        """
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT):
                addresses = await self._resolve(name)
        except (OSError, TimeoutError) as error:
            log.warning("the name %s cannot be resolved: %s", name, str(error) or "no answer in time")
            return None
        found = tuple(sorted(set(addresses)))
        before = self._known.get(name)
        if not found or found == before:
            return None
        self._known[name] = found
        return endpoints(addresses) if before is None else [*_counted(_kinds(addresses))]
