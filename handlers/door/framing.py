"""What a request's head must be, beyond what the parser asks: one meaning, whoever else reads it on its way."""

from collections.abc import Mapping, Sequence

from handlers.door.errors import InvalidRequest

ONCE = (b"host", b"authorization", b"content-type", b"idempotency-key", b"origin", b"expect")
"""Fields of which a second one could mean something else to who reads it. (The parser minds the framing's own.)"""
OVERHEAD = 8
"""Bytes of framing for each byte of a chunked body: one byte in a chunk takes five."""

INVALID = InvalidRequest("The request is not valid HTTP.", code="invalid_http")
TOO_LARGE = InvalidRequest(
    "The headers of the request are too large; send fewer or shorter ones.", status=431, code="headers_too_large"
)
TOO_LONG = InvalidRequest("The URL of the request is too long.", status=414, code="url_too_long")
TOO_SLOW = InvalidRequest("The headers of the request did not arrive in time.", status=408, code="request_timeout")
_ENCODED = InvalidRequest(
    "This transfer coding is not known here: send a body with its length, or 'Transfer-Encoding: chunked' alone.",
    status=501,
    code="transfer_encoding_not_supported",
)


def fault(
    version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]], fields: Mapping[bytes, bytes], max_url: int
) -> InvalidRequest | None:
    """Why a head that could be parsed is refused all the same (RFC 9112, sections 3.2, 6.1 and 11.2); else None.

    `fields` are the headers by name.
    """
    if len(url) > max_url:
        return TOO_LONG
    if version == "1.1":
        if b"host" not in fields:
            return INVALID
    elif version != "1.0" or b"transfer-encoding" in fields:
        return INVALID
    if len(fields) != len(headers):
        names = [name for name, _ in headers]
        if any(names.count(name) > 1 for name in ONCE):
            return INVALID
    coding = fields.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        return _ENCODED
    if url[:1] != b"/" and url != b"*" and not _is_own(url, fields.get(b"host", b"")):
        return INVALID
    return None


def _is_own(url: bytes, host: bytes) -> bool:
    """Whether a target with an address (absolute-form) names the very host of the request, as a client must."""
    scheme, _, rest = url.partition(b"://")
    address = rest.partition(b"/")[0].partition(b"?")[0]
    return scheme.lower() in (b"http", b"https") and address.lower() == host.lower()
