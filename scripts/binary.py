"""`make binary`: dist/conch, one file that needs nothing but glibc, and its checksum beside it.

scripts/bundle.py makes the tree; it is packed with zstd, in two layers, into scripts/launcher.c, which unpacks it once
and starts it.
"""

import hashlib
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from handlers.door.gateway import VERSION  # noqa: E402
from handlers.ops import version  # noqa: E402
from scripts import bundle  # noqa: E402

TARGET = ROOT / "dist" / "conch"
ENTRY = struct.Struct("<IIQ")  # mode, length of the path, size: `struct entry` of launcher.c
LEVEL = ("--ultra", "-22", "--zstd=wlog=23", "-T1")  # a window of 8 MiB: unpacking takes no more memory than serving
COMPILE = (
    "cc",
    "-std=gnu11",
    "-Os",
    "-static",
    "-s",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-o",
    "conch",
)


def main() -> int:
    """Build, and say what came of it."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        print("make binary: it is built on Linux on x86-64, for the same.", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="conch-binary-") as folder:
            make(Path(folder), stamp())
    except (bundle.BundleError, subprocess.CalledProcessError) as error:
        print(f"make binary: {error}", file=sys.stderr)
        return 1
    return 0


def stamp() -> dict[str, str]:
    """What `conch version` will tell. The date is SOURCE_DATE_EPOCH's, else the commit's, so that the bytes are too."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH") or version.git("log", "-1", "--format=%ct") or "0"
    built = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"version": VERSION, "commit": version.commit(), "built": built}


def make(folder: Path, build: dict[str, str]) -> None:
    """Build TARGET by way of `folder`."""
    python, tree = bundle.interpreter(), folder / "tree"
    print(f"Conch {VERSION} on Python {python.version} ({python.program})", flush=True)
    script = bundle.make(tree, python, build)
    digests = b""
    for layer in ("first", "second"):
        pack(tree / layer, folder / f"{layer}.tree")
        subprocess.run(["zstd", "--quiet", *LEVEL, f"{layer}.tree", "-o", f"{layer}.zst"], check=True, cwd=folder)
        digests += hashlib.sha256((folder / f"{layer}.zst").read_bytes()).digest()
    digest = hashlib.sha256(digests).hexdigest()
    names = [f'-DNAME="{VERSION}-{digest[:12]}"', f'-DSCRIPT="{script}"']
    subprocess.run([*COMPILE, *names, ROOT / "scripts" / "launcher.c", "-lzstd"], check=True, cwd=folder)
    TARGET.parent.mkdir(exist_ok=True)
    place(folder / "conch")
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size / 1e6:.1f} MB, needs glibc {glibc(tree)}")


def pack(tree: Path, payload: Path) -> None:
    """One file of a whole layer, as launcher.c reads it; an entry without a path is the end."""
    with payload.open("wb") as out:
        for path, mode, data in bundle.entries(tree):
            name = path.encode()
            out.write(ENTRY.pack(mode, len(name), len(data)) + name + data)
        out.write(ENTRY.pack(0, 0, 0))


def place(program: Path) -> None:
    """Put the program and its checksum in dist/, the old ones' place, at once."""
    data = program.read_bytes()
    new = TARGET.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(0o755)
    new.replace(TARGET)
    TARGET.with_suffix(".sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  {TARGET.name}\n")


def glibc(tree: Path) -> str:
    """The oldest glibc that every program of the tree runs on: the newest version that one asks for."""
    command = ["objdump", "-T", *map(str, bundle.programs(tree))]
    shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return ".".join(map(str, max(tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", shown))))


if __name__ == "__main__":
    sys.exit(main())
