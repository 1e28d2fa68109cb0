"""The one shape of an error, as clients get it."""

import msgspec
from msgspec import UNSET, UnsetType


class ErrorDetail(msgspec.Struct):
    """What was wrong and what to do; `param` names the field, `code` is for programs. A 402 has the last three too."""

    message: str
    type: str
    param: str | None
    code: str | None
    current_balance_cents: int | UnsetType = UNSET
    required_cents: int | UnsetType = UNSET
    topup_url: str | UnsetType | None = UNSET


class Error(msgspec.Struct):
    """Every answer that is not a success."""

    error: ErrorDetail
