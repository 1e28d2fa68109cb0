"""Every error that the code can answer with, read from the code: where one is made, its status, type and code."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

from handlers.door import billing, errors
from tests.gateway import ROOT

KINDS: dict[str, type[errors.ApiError]] = {
    name: kind
    for module in (errors, billing)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, errors.ApiError)
}
# Where the code is a value of the function that makes it: those that it can be.
COMPUTED: dict[str, set[str | None]] = {
    "handlers/completions.py": {"invalid_value", "unsupported_parameter"},
    "handlers/door/stored.py": {"response_not_found", "previous_response_not_found"},
    "handlers/ops/admin.py": {"invalid_admin_token", "invalid_metrics_token"},
}


class Refusal(NamedTuple):
    """What stands in an error, and its status. `code` is None where the error has none."""

    status: int
    type: str
    code: str | None


def refusals() -> Iterator[tuple[Refusal, bool]]:
    """Each that some place in handlers/ makes, and whether it says there when to come again."""
    for path in sorted((ROOT / "handlers").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name == "handlers/ops/openapi/examples.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield from _made(node, KINDS[node.func.id], name)


def _made(call: ast.Call, kind: type[errors.ApiError], path: str) -> Iterator[tuple[Refusal, bool]]:
    codes: set[str | None]
    given = {each.arg: each.value for each in call.keywords if each.arg}
    status, code = given.get("status"), given.get("code")
    if kind is errors.IdempotencyRefused:
        code = call.args[1]
    again = "headers" in given and "retry_after" in ast.unparse(given["headers"])
    told = kind.status if status is None else ast.literal_eval(status)
    if code is None:
        codes = {kind.code}
    else:
        codes = {ast.literal_eval(code)} if isinstance(code, ast.Constant) else COMPUTED[path]
    for each in codes:
        yield Refusal(told, str(each) if kind is errors.IdempotencyRefused else kind.type, each), again
