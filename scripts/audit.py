"""Asks the advisory database of PyPI about every locked package: exits with 1 where one has a known vulnerability.

    python scripts/audit.py

Offline it says so in one line and exits with 0: what was not asked is not held against a change.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("dev", "models")  # what runs is part of dev
PATIENCE = 120.0  # seconds for each


def main() -> None:
    """Ask, tell, and exit."""
    told = []
    for lock in LOCKS:
        answer = ask(ROOT / "requirements" / f"{lock}.txt")
        if answer is None:
            print("audit: no advisory database can be reached; nothing was audited")
            return
        told += answer
    found, unknown = sort(told)
    for line in found:
        print(f"audit: {line}")
    if len(unknown) == len(told):
        print("audit: the package index has no advisories; nothing was audited")
    elif unknown:
        print(f"audit: not audited, since the index does not know them: {', '.join(unknown)}")
    else:
        print(f"audit: {len(told)} locked packages, {len(found)} with a known vulnerability")
    if found:
        sys.exit(1)


def ask(lock: Path) -> list[dict[str, Any]] | None:
    """What pip-audit says of each package of a lock; None where it reaches nobody."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json", "--requirement", str(lock)]
    command += ["--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    if done.stdout:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        return packages
    if "connect" in done.stderr.lower():
        return None
    sys.exit(f"audit: pip-audit failed: {(done.stderr.splitlines() or ['it said nothing'])[-1]}")


def sort(packages: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """A line for each vulnerability, and the names of those that could not be asked about."""
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'none'}"
        for package in packages
        for known in package.get("vulns", ())
    ]
    return found, unknown


if __name__ == "__main__":
    main()
