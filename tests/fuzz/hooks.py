"""In schemathesis' own process: what lets its requests reach a model, and the count of what was answered."""

import atexit
import json
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis import Case, HookContext, Response
from schemathesis.transport.prepare import get_exclude_headers

from tests.fuzz.sound import wav

SHORT = 20  # seconds: a request that is given less may well be a 504, as it asked
STATUSES: Counter[int] = Counter()
PHASES: Counter[str] = Counter()
TIMES = [0.0]  # seconds that each answer took

WHOLE = wav(0.4)
FILES = [WHOLE, wav(0), WHOLE[:-7], WHOLE[:30], b"ID3" + WHOLE, b""]
schemathesis.openapi.format("binary", strategies.sampled_from(FILES) | strategies.binary())


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Keep a good request good, and let it get further: with time, and a key not yet used."""
    if get_exclude_headers(case):
        return  # it is to lack one, which it would have again if it were changed
    if _number(timeout := case.headers.get("X-Request-Timeout")) < SHORT:
        case.headers["X-Request-Timeout"] = f"60{timeout}"[:9]
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and 0 < len(key) < 200 and key.isascii() and key.isprintable():
        # As made, nearly all are "0": every request but the first would be a 409.
        case.headers["Idempotency-Key"] = (
            key + blake2b(repr((case.headers, case.body)).encode(), digest_size=8).hexdigest()
        )


def _number(timeout: Any) -> float:
    """What X-Request-Timeout says; endless where that is no number."""
    digits = str(timeout).replace(".", "", 1)
    return float(timeout) if digits.isascii() and digits.isdigit() else float("inf")


@schemathesis.hook  # type: ignore[untyped-decorator]
def after_call(context: HookContext, case: Case, response: Response) -> None:
    """Count it."""
    STATUSES[response.status_code] += 1
    PHASES[case.meta.phase.name.value if case.meta else "checks"] += 1
    TIMES.append(response.elapsed)


def _tell() -> None:
    told = {"phases": PHASES, "statuses": dict(sorted(STATUSES.items())), "slowest_ms": round(max(TIMES) * 1000)}
    Path("counts.json").write_text(json.dumps(told))


atexit.register(_tell)
