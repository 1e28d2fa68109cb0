"""Makes what a purpose needs: system packages, .venv, the locked dependencies; quick when all is there.

    python3 scripts/setup.py run | test | sdk | fuzz | check | bench | peers | profile | binary

Standard library only, for a bare Python 3.11: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PEERS = ROOT / ".venv-peers"  # what make bench-peers measures: requirements/peers.txt, and a package of npm
FUZZ = ROOT / ".venv-fuzz"  # make fuzz: requirements/fuzz.txt, which holds what Conch itself needs too
SDK = ROOT / ".venv-sdk"  # the clients of docs/clients.md: requirements/sdk.txt, and tests/sdk/package.json by its npm
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
# A dev environment holds the run environment, at the same versions: what is installed there serves both.
LOCKS = {
    "run": ["run", "dev"],
    "test": ["dev"],
    "sdk": ["sdk"],
    "fuzz": ["fuzz"],
    "check": ["dev"],
    "bench": ["run", "dev"],
    "peers": ["run", "dev"],
    "profile": ["dev"],
    "binary": ["dev"],
}
# What a binary is built with, by a file of each below /usr, and Debian's package of it.
BUILDS = {
    "bin/gcc": "gcc",
    "include/stdlib.h": "libc6-dev",
    "include/zstd.h": "libzstd-dev",
    "bin/zstd": "zstd",
    "bin/strip": "binutils",
    "bin/python3": "python3",
}


def main(arguments: list[str]) -> None:
    """Make the environment of one purpose; exit with a sentence that says what to do when that cannot be."""
    if sys.version_info < (3, 11):  # noqa: UP036 - reads on older interpreters, to say so
        sys.exit(f"conch needs Python 3.11 or newer; this is {VERSION}. Try: make PYTHON=python3.11 …")
    if len(arguments) != 1 or arguments[0] not in LOCKS:
        sys.exit(f"usage: setup.py {' | '.join(LOCKS)}")
    purpose = arguments[0]
    system_packages(purpose)
    if not any(installed(lock) for lock in LOCKS[purpose]):
        install(LOCKS[purpose][0])
    if purpose == "peers":
        install_peers()
    if purpose == "sdk":
        install_node_clients()


def system_packages(purpose: str) -> None:
    """Install what the system lacks when we may (root, apt-get), else exit with the one line that does."""
    missing = missing_packages(purpose)
    if not missing:
        return
    install_line = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not shutil.which("apt-get"):
        sys.exit(f"setup: please install these, by their names on this system: {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit(
            f"setup: {' '.join(missing)} missing. Run this once, then try again:\n"
            f"  sudo apt-get update && sudo {shlex.join(install_line)}"
        )
    say(f"installing system packages: {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_new_cluster() if "postgresql" in missing else contextlib.nullcontext():
        for line in (["apt-get", "update"], install_line):
            done = subprocess.run(
                line, check=False, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"setup: {shlex.join(line)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextlib.contextmanager
def no_new_cluster() -> Iterator[None]:
    """Debian's postgresql would make a database and start it, from then on at each boot; the tests make their own."""
    setting = Path("/etc/postgresql-common/createcluster.d/conch.conf")
    setting.parent.mkdir(parents=True, exist_ok=True)
    setting.write_text("create_main_cluster = false\n")
    try:
        yield
    finally:
        setting.unlink()
        with contextlib.suppress(OSError):  # it holds settings of others
            setting.parent.rmdir()


def missing_packages(purpose: str) -> list[str]:
    """The Debian packages that a purpose needs and this machine lacks."""
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{VERSION}-venv")
    if purpose in ("run", "test", "fuzz", "binary") and sys.platform == "linux" and not has_libpython():
        missing.append(f"libpython{VERSION}")  # Triton's Python stub links it; python3 alone lacks it
    if purpose == "test" and not which_system("curl"):
        missing.append("curl")  # the README's lines are run as they stand
    if purpose == "test" and not which_system("chromium"):
        missing.append("chromium")  # the dashboard is clicked through
    if purpose in ("test", "binary") and not postgres_programs():
        missing.append("postgresql")
    if purpose in ("bench", "peers", "profile"):
        missing += [name for name in ("nginx", "wrk") if not which_system(name)]
    if purpose == "peers":
        missing += [package for name, package in (("node", "nodejs"), ("npm", "npm")) if not which_system(name)]
    if purpose == "binary":
        missing += [package for file, package in BUILDS.items() if not Path("/usr", file).exists()]
    return missing


def has_libpython() -> bool:
    """Whether this interpreter's shared library is where Triton's stub will look for it."""
    name = f"libpython{VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"]
    return any((Path(str(folder)) / name).exists() for folder in folders)


def postgres_programs() -> Path | None:
    """The folder of the newest PostgreSQL server's programs, which Debian keeps off every PATH."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not folders and (found := which_system("postgres")):
        folders = [Path(found).resolve().parent]
    return max(folders, key=lambda folder: int(folder.parent.name) if folder.parent.name.isdigit() else 0, default=None)


def which_system(program: str) -> str | None:
    """Where a program is, also in sbin, which a user's PATH on Debian leaves out."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def home(lock: str) -> Path:
    """The virtual environment that a lock is for."""
    return {"peers": PEERS, "sdk": SDK, "fuzz": FUZZ}.get(lock, VENV)


def installed(lock: str) -> bool:
    """Whether its environment holds exactly this lock, made by this interpreter."""
    stamp = home(lock) / f"conch-{lock}.stamp"
    return stamp.exists() and stamp.read_text() == fingerprint(lock)


def fingerprint(lock: str) -> str:
    """Changes when the lock or the interpreter does."""
    base = os.path.realpath(sys.executable)
    return hashlib.sha256(lock_file(lock).read_bytes() + f"{base} {sys.version}".encode()).hexdigest()


def lock_file(lock: str) -> Path:
    return ROOT / "requirements" / f"{lock}.txt"


def install(lock: str) -> None:
    """Fill an environment from its lock, hashes checked; pip byte-compiles. Starts afresh unless it only has to add."""
    venv = home(lock)
    if venv != VENV or not installed("run"):
        say(f"making {venv.name} with Python {VERSION}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    packages = sum("==" in line for line in lock_file(lock).read_text().splitlines())
    say(f"installing {packages} locked packages")
    options = "--disable-pip-version-check install --progress-bar off --no-deps --require-hashes -r"
    command = [venv / "bin/python", "-m", "pip", *options.split(), lock_file(lock)]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        collected = 0
        for line in process.stdout:
            if line.startswith("Collecting ") and sys.stdout.isatty():
                collected += 1
                print(f"\r  {collected}/{packages} {line.split()[1]:<50.50}", end="", flush=True)
    if sys.stdout.isatty():
        print(f"\r{'':70}\r", end="")
    if process.returncode:
        sys.exit("setup: pip failed; its message is above")
    (venv / f"conch-{lock}.stamp").write_text(fingerprint(lock))
    say(f"{venv.name} is ready")


def install_peers() -> None:
    """The other gateways: those in Python by their lock, Portkey by npm's."""
    if not installed("peers"):
        install("peers")
    node, locked = PEERS / "node", ROOT / "requirements/peers"
    wanted = hashlib.sha256((locked / "package-lock.json").read_bytes()).hexdigest()
    if not stamped(node, wanted):
        shutil.copytree(locked, node, dirs_exist_ok=True)
        npm_ci(node, wanted)


def install_node_clients() -> None:
    """The clients for Node, by npm's lock, with the node and npm of their own environment."""
    node = ROOT / "tests/sdk"
    wanted = hashlib.sha256((node / "package-lock.json").read_bytes()).hexdigest() + fingerprint("sdk")
    if not stamped(node, wanted):
        npm_ci(node, wanted, SDK / "bin")


def stamped(folder: Path, wanted: str) -> bool:
    """Whether npm has installed there just that."""
    stamp = folder / "node_modules/conch.stamp"
    return stamp.exists() and stamp.read_text() == wanted


def npm_ci(folder: Path, wanted: str, programs: Path | None = None) -> None:
    """Install what a folder's lock names, with the npm of `programs` or the system's; no package's scripts are run."""
    say(f"installing the packages of {(folder / 'package-lock.json').relative_to(ROOT)}")
    path = os.environ.get("PATH", os.defpath)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{path}" if programs else path,
        "NODE_USE_SYSTEM_CA": "1",  # what the system trusts, as pip and apt do
    }
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]
    if subprocess.run(npm, cwd=folder, env=environment, check=False, stdin=subprocess.DEVNULL).returncode:
        sys.exit("setup: npm failed; its message is above")
    (folder / "node_modules/conch.stamp").write_text(wanted)


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
