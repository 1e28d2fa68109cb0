"""The sockets to serve on: opened here, or handed over by systemd (sd_listen_fds(3)); and the operator's own."""

import contextlib
import socket
from typing import NamedTuple

from config import ConfigError, Server, activated

ADMIN = "admin"
"""The FileDescriptorName of a socket unit that stands for `admin_listen`."""


class Listening(NamedTuple):
    """Sockets to serve on. Those that were handed over are somebody else's: never to be shut down, only closed."""

    public: list[socket.socket]
    admin: list[socket.socket]
    handed: bool
    admin_port: int | None  # the one where /admin is answered; None: every one

    @property
    def all(self) -> list[socket.socket]:
        return [*self.public, *self.admin]

    def stop(self, sockets: list[socket.socket]) -> None:
        """Take no more connections on these, whoever else has them open."""
        if not self.handed:
            for each in sockets:
                with contextlib.suppress(OSError):  # it does not listen
                    each.shutdown(socket.SHUT_RDWR)


def listen(server: Server) -> Listening:
    """What systemd has handed over, else a socket for each address of `host` and of `admin_listen`.

    Raises ConfigError.
    """
    names = activated()
    if names:
        handed = [(name, socket.socket(fileno=number)) for number, name in names]
        public = [each for name, each in handed if name != ADMIN]
        admin = [each for name, each in handed if name == ADMIN]
        if not public or (server.admin_listen is not None and not admin):
            what = "only the admin socket" if not public else "no socket with FileDescriptorName=admin"
            raise ConfigError(f"systemd handed over {what}: see deploy/conch.socket, or unset admin_listen.")
        return Listening(public, admin, True, _port(admin))
    opened = _open(server.host, server.port, "CONCH_SERVER__PORT or CONCH_SERVER__HOST")
    if server.admin_listen is None:
        return Listening(opened, [], False, None)
    host, _, port = server.admin_listen.rpartition(":")
    try:
        admin = _open(host.strip("[]"), int(port), "CONCH_SERVER__ADMIN_LISTEN")
    except ConfigError:
        for each in opened:
            each.close()
        raise
    return Listening(opened, admin, False, _port(admin))


def url(listening: socket.socket, scheme: str) -> str:
    """The address of a socket, for people."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _port(sockets: list[socket.socket]) -> int | None:
    return sockets[0].getsockname()[1] if sockets else None


def _open(host: str, port: int, setting: str) -> list[socket.socket]:
    listening: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            listening.append(socket.create_server(address, family=family, backlog=2048))
    except OSError as error:
        for opened in listening:
            opened.close()
        reason = str(error.strerror).partition(" (")[0]  # Python's own part repeats the address
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}): set {setting}.") from error
    return listening
