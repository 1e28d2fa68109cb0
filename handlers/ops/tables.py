"""What a command answers with, printed: tables for people, JSON for programs."""

import argparse
from datetime import UTC, datetime
from typing import Any

import msgspec


def show(options: argparse.Namespace, answer: Any, total: Any = None) -> int:
    """Print an answer: a list as a table with a line for its `total`, one thing as lines; with --json as it is."""
    rows = msgspec.to_builtins(answer)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    elif isinstance(rows, list):
        print(_table(rows, msgspec.to_builtins(total)) if rows else "none")
    else:
        width = max(len(name) for name in rows)
        print("\n".join(f"{name.ljust(width)}  {_cell(name, value)}".rstrip() for name, value in rows.items()))
    return 0


def _table(rows: list[dict[str, Any]], total: dict[str, Any] | None) -> str:
    names = list(rows[0])
    lines = [names, *([_cell(name, row[name]) for name in names] for row in rows)]
    if total is not None:
        lines.append([_cell(name, total[name]) if name in total else "" for name in names])
        lines[-1][0] = lines[-1][0] or "total"
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [_is_number(name, rows) for name in names]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(name: str, rows: list[dict[str, Any]]) -> bool:
    """Whether a column reads best when it ends in line."""
    if name.endswith("_usd"):
        return True
    return not _is_time(name) and any(type(row[name]) in (int, float) for row in rows)


def _is_time(name: str) -> bool:
    return name == "at" or name.endswith("_at")


def _cell(name: str, value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if _is_time(name):
        try:
            return datetime.fromtimestamp(value / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        except (ValueError, OverflowError, OSError):
            return str(value)  # a time that no calendar of ours has
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={_cell(key, each)}" for key, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
