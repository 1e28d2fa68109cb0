"""Which Conch this is: version, commit and date, as `make binary` wrote them, or as git tells for a working tree."""

import json
import subprocess

from config import BUILD
from handlers.door.gateway import VERSION

OURS = ("app.py", "config", "handlers", "store", "upstream")
"""What a running Conch consists of."""


def build() -> dict[str, str]:
    """`version`, `commit` and `built` (UTC, ISO 8601); "unknown" where nobody wrote them."""
    if BUILD.is_file():
        written: dict[str, str] = json.loads(BUILD.read_text(encoding="utf-8"))
        return written
    return {"version": VERSION, "commit": commit(), "built": "unknown"}


def commit() -> str:
    """The commit of the tree that this file lies in; "+changes" after it where our own files differ from that."""
    if not git("ls-files", "app.py"):
        return "unknown"  # no git, no repository, or somebody else's around us
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *OURS) else "")


def git(*arguments: str) -> str:
    """What git says of our tree; nothing where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], check=False, capture_output=True, text=True, cwd=BUILD.parents[1])
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
