"""TLS on Conch's own port: a certificate chain and its key, from PEM files, which a reload reads again."""

import ssl

from config import ConfigError, Server


def context(server: Server) -> ssl.SSLContext | None:
    """None without `ssl_certfile`. Raises ConfigError."""
    if server.ssl_certfile is None:
        return None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and 1.3
    made.set_alpn_protocols(["http/1.1"])
    read(made, server)
    return made


def read(into: ssl.SSLContext, server: Server) -> None:
    """Serve new connections with what the files hold now. Raises ConfigError, and then nothing has changed."""
    assert server.ssl_certfile is not None
    certificate, key = server.ssl_certfile, server.ssl_keyfile or server.ssl_certfile
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        for each in (trial, into):
            each.load_cert_chain(certificate, key, password=_ask_nobody)
    except ssl.SSLError as error:
        why = (error.reason or "").replace("_", " ").lower() or "the key has a password, or they are no PEM files"
        raise ConfigError(f"[server] ssl_certfile {certificate} and ssl_keyfile {key} do not fit: {why}.") from error
    except OSError as error:
        raise ConfigError(f"[server] ssl_certfile {certificate} or {key} cannot be read ({error.strerror}).") from error


def _ask_nobody() -> str:
    """OpenSSL would ask the terminal."""
    return ""
