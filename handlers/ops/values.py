"""What an operator writes, read: names, counts, spans, moments, dollars; and dollars as they are shown."""

import re
from datetime import UTC, datetime, timedelta

from config import MOST_PER_MINUTE, NANO

MOST_DOLLARS = 10_000_000  # at once: hundreds of such amounts stay within 64 bits
FOREVER = {"none", "never"}
LONGEST, LATEST = timedelta(days=36_500), 2999  # a span, and the year of a moment

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPAN = re.compile(r"([0-9]{1,12})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DOLLARS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?")


def workspace_name(text: str) -> str:
    """The name of a new workspace. Raises ValueError."""
    if NAME.fullmatch(text) is None:
        raise ValueError(f"{text[:100]!r} is not 1 to 64 of A-Z a-z 0-9 . _ - that begin with a letter or digit")
    return text


def positive(text: str) -> int:
    """Requests per minute. Raises ValueError."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number from 1")
    if int(text) > MOST_PER_MINUTE:
        raise ValueError(f"{text} is more than {MOST_PER_MINUTE} requests per minute")
    return int(text)


def span(text: str) -> timedelta:
    """A span such as 30m, 24h or 7d. Raises ValueError."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not a span such as 30m, 24h or 7d")
    try:
        length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        length = timedelta.max
    if length > LONGEST:
        raise ValueError(f"{text!r} is longer than {LONGEST.days}d")
    return length


def expiry(text: str) -> int | None:
    """µs since the epoch of a span from now, or of an ISO date (its midnight, UTC); None: never. Raises ValueError."""
    if text in FOREVER:
        return None
    now = datetime.now(UTC)
    moment = now + span(text) if _SPAN.fullmatch(text) else _date(text)
    if moment.year > LATEST:
        raise ValueError(f"{text!r} is after the year {LATEST}; never is what never ends")
    if moment <= now:
        raise ValueError(f"{text!r} is in the past")
    return _microseconds(moment)


def moment(text: str) -> int:
    """µs since the epoch of a span back from now, or of an ISO date (its midnight, UTC). Raises ValueError."""
    return _microseconds(datetime.now(UTC) - span(text) if _SPAN.fullmatch(text) else _date(text))


def _date(text: str) -> datetime:
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:100]!r} is neither a span such as 30d nor a date such as 2027-01-31") from None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def dollars(text: str) -> int:
    """Nano-dollars of a decimal such as 25 or 0.5, exactly. Raises ValueError."""
    match = _DOLLARS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is not an amount of dollars such as 25 or 0.5, with at most nine decimals")
    amount = int(match[1]) * NANO + int((match[2] or "").ljust(9, "0"))
    if amount > MOST_DOLLARS * NANO:
        raise ValueError(f"{text!r} is more than {MOST_DOLLARS} dollars")
    return amount


def usd(nano: int) -> str:
    """Nano-dollars as a decimal of dollars: exact, with at least two decimals."""
    whole, rest = divmod(abs(nano), NANO)
    return f"{'-' if nano < 0 else ''}{whole}.{f'{rest:09}'.rstrip('0').ljust(2, '0')}"
