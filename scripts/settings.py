"""docs/configuration.md, made of the Structs of the settings: `make docs`. A key's meaning is the comment beside it."""

import ast
import inspect
import sys
import tokenize
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import NANO, PLANS, Config, sections  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
HEAD = """\
# Configuration

Made by `make docs` from config/sections.py; a test fails when it is stale.

Settings come from `conch.toml` (`--config`, `CONCH_CONFIG`, else config/conch.toml); over it lies its `[env.NAME]`
(`--env`, `CONCH_ENV`), and over both lie variables `CONCH_SECTION__KEY`: `CONCH_SERVER__PORT=9000`,
`CONCH_UPSTREAMS__LOCAL__URLS=http://a:8000,http://b:8000`. An unknown key is an error. Secrets come from the
environment only: `CONCH_ADMIN_TOKEN` opens `/admin`, `CONCH_API_KEY` is what `conch get` asks with. A file's name is
taken from where `conch.toml` lies.

A duration is written "250ms", "30s", "5m", "24h" or "7d"; a size "64KiB" or "16MiB"; dollars as a text, "0.10".
"""
SPANS = ((86400.0, "d"), (3600.0, "h"), (60.0, "m"), (1.0, "s"), (0.001, "ms"))
SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    sections.Duration: "duration",
    sections.Period: "duration over 0",
    sections.Size: "size",
    sections.Dollars: "dollars",
}


def page() -> str:
    """The whole page."""
    said = read_meanings(inspect.getsource(sections))
    blocks = [HEAD, *(_block(kind, said) for kind in tables())]
    plans = "".join(
        f"| {name} | {'' if plan.keys else 'no keys'} | {plan.default:,} | {plan.ceiling:,} |\n"
        for name, plan in PLANS.items()
    )
    blocks.append(f"## The plans that are built in\n\n| plan | | default | ceiling |\n|---|---|---|---|\n{plans}")
    return "\n".join(blocks)


def _is_section(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, sections.Section) and thing is not sections.Section


def tables() -> list[type[msgspec.Struct]]:
    """Every table but the file itself, in the order of the source."""
    kinds = [kind for _, kind in inspect.getmembers(sections, _is_section) if kind is not Config]
    return sorted(kinds, key=lambda kind: inspect.getsourcelines(kind)[1])


def _block(kind: type[msgspec.Struct], meanings: dict[tuple[str, str], str]) -> str:
    title, _, about = (inspect.getdoc(kind) or "").partition(": ")
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(kind):
        meaning = meanings.get((kind.__name__, field.name), "")
        if not meaning:
            raise SystemExit(
                f"{kind.__name__}.{field.name} has no meaning: write a comment beside it in config/sections.py."
            )
        rows.append(f"| `{field.encode_name}` | {_type(hints[field.name])} | {_default(field)} | {meaning} |\n")
    about = about[:1].upper() + about[1:]
    return f"## {title}\n\n{about}\n\n| key | type | default | |\n|---|---|---|---|\n{''.join(rows)}"


def read_meanings(source: str) -> dict[tuple[str, str], str]:
    """The comment at the end of each field's line, or on the line before it."""
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found: dict[tuple[str, str], str] = {}
    for struct in ast.parse(source).body:
        if not isinstance(struct, ast.ClassDef):
            continue
        for node in struct.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above = node.lineno - 1
                alone = lines[above - 1].lstrip().startswith("#")
                said = comments.get(node.end_lineno or 0) or (comments.get(above) if alone else None) or ""
                found[struct.name, node.target.id] = said.replace("|", "\\|").replace("<", "&lt;")
    return found


def _type(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1])
    if origin is Literal:
        return ", ".join(f"`{str(each).lower() if isinstance(each, bool) else each}`" for each in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list: {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    return "table"


def _bounds(meta: Any) -> str:
    low, high = meta.ge, meta.le
    if low is not None and high is not None:
        return f", {low} to {high:,}"
    return f" from {low}" if low is not None else f" like `{meta.pattern}`" if meta.pattern else ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if value is msgspec.NODEFAULT:
        if field.default_factory is msgspec.NODEFAULT:
            return "required"
        value = field.default_factory()
    if value is None or isinstance(value, msgspec.Struct) or value in ({}, []):
        return ""
    if isinstance(value, sections.Duration):
        return f"`{_in_units(value, SPANS)}`"
    if isinstance(value, sections.Size):
        return f"`{_in_units(value, SIZES)}`"
    if isinstance(value, sections.Dollars):
        return f'`"{value / NANO:g}"`'
    return f"`{msgspec.json.encode(value).decode()}`"


def _in_units(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, name in units:
        if value >= size and value % size == 0:
            return f'"{int(value / size)}{name}"'
    return f'"0{units[-2][1]}"'


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
