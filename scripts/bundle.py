"""The tree that dist/conch carries: an interpreter, its standard library, the locked packages and Conch, as bytecode.

It has two layers, each a folder: `first`, with all that serves a chat, and `second`, with packages that are large and
imported late. All of a layer that is imported lies in one folder, so that a start searches one; shared libraries that a
bare system may lack lie in lib/. What only builds, tests or describes is left out.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handlers.ops.version import OURS

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "run.txt"
DEFAULTS = ("models/assistant/chat_template.jinja", "models/assistant/tokenizer_config.json")  # conch.toml names them

# Beginnings of paths. Of the standard library: tests, a developer's tools, what a terminal or a desktop needs.
STDLIB_OUT = re.compile(
    r"(test|idlelib|tkinter|turtledemo|lib2to3|distutils|pydoc_data|ensurepip|venv|config-[^/]*|\w*-packages)/"
    r"|(turtle|antigravity|this)\.py"
    r"|lib-dynload/(_test|xx|_xx|_tkinter|_curses|readline|_dbm|_gdbm|nis\.|ossaudiodev|_crypt)"
    r"|(.*/)?__pycache__/"
)
# Of the packages: what nothing of ours reaches. Of tritonclient only the messages are used (upstream/grpc.py), so that
# what its own client imports stays out with it; Pillow makes and reads PNG, JPEG and WebP (upstream/media/images.py).
PACKAGES_OUT = re.compile(
    r"(bin|av|av\.libs|ml_dtypes|urllib3|tritonhttpclient|tritongrpcclient|tritonclientutils|tritonshmutils)/|rapidjson\."
    r"|tritonclient/(?!grpc/(service|model_config)_pb2\.py)"
    r"|PIL/(_avif|_imagingft|_imagingcms|_imagingmath|_imagingmorph|_imagingtk)\."
    r"|numpy/(f2py|random|testing|_pyinstaller|distutils|lib/lapack_lite)/|numpy/_core/(_simd\.|\w+_tests\.|lib/)"
    r"|(.*/)?(tests?|include|__pycache__)/|.*\.(pyi|pxd|pyx|c|h|hpp|a|f90|rst)$|(.*/)?py\.typed$"
    r"|[^/]*\.dist-info/(?!licenses/|LICEN[CS]E|COPYING|NOTICE)"
)
# The second layer, by package (scripts/start.py): no start imports them, nor a chat over HTTP.
SECOND = re.compile(
    r"(aiohappyeyeballs|aiohttp|aiosignal|asyncpg|attrs?|frozenlist|google|grpc|multidict|numpy|numpy\.libs|PIL|pillow\.libs"
    r"|propcache|tokenizers|tritonclient|yarl)"
)
# glibc is the one thing that a system must have.
GLIBC = re.compile(r"(ld-linux.*|linux-vdso|lib(c|m|mvec|dl|rt|pthread|util|resolv|anl))\.so.*")


class BundleError(RuntimeError):
    """The tree cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython to carry: its program, its version as "3.11", the folder of its standard library."""

    program: Path
    version: str
    stdlib: Path


def interpreter() -> Interpreter:
    """The system's Python, which Debian builds with profiles and without a libpython, else the one that runs this."""
    question = (
        "import json, sys, sysconfig as s;"
        "print(json.dumps([sys.executable, s.get_python_version(), s.get_path('stdlib')]))"
    )
    for program in ("/usr/bin/python3", getattr(sys, "_base_executable", sys.executable)):
        if not Path(program).exists():
            continue
        done = subprocess.run([program, "-I", "-c", question], check=True, capture_output=True, text=True)
        path, version, stdlib = json.loads(done.stdout)
        if tuple(map(int, version.split("."))) >= (3, 11):
            return Interpreter(Path(path).resolve(), version, Path(stdlib))
    raise BundleError("the binary carries Python 3.11 or newer, and there is none: apt-get install python3")


def make(root: Path, python: Interpreter, build: dict[str, str]) -> Path:
    """Fill `root`, a new folder, with the layers; returns the path of start.pyc in the first. `build` is what
    `conch version` tells. Raises BundleError.
    """
    tree, second = root / "first", root / "second"
    imports = tree / "lib" / f"python{python.version}"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(python.program, tree / "bin" / "conch")
    _copy(python.stdlib, imports, STDLIB_OUT)
    with tempfile.TemporaryDirectory(prefix="conch-packages-") as folder:
        _install(Path(folder), python)
        _copy(Path(folder), imports, PACKAGES_OUT)
    for name in ("tritonclient", "tritonclient/grpc"):
        (imports / name / "__init__.py").touch()
    for name in [*OURS, *DEFAULTS]:
        _copy(ROOT / name, imports / name, re.compile(r"(.*/)?__pycache__/"))
    (imports / "config" / "build.json").write_text(json.dumps(build))
    shutil.copy(ROOT / "scripts" / "start.py", imports)
    _drop_unneeded(imports)
    _add_libraries(tree)
    strippable = [path for path in programs(tree) if not _in_wheel(path)]
    subprocess.run(["strip", "--strip-unneeded", *strippable], check=True)
    _compile(imports, python)
    second.mkdir()
    for package in [path for path in sorted(imports.iterdir()) if SECOND.fullmatch(path.name)]:
        package.rename(second / package.name)
    (imports / "second.txt").write_text("\n".join(sorted(path.name for path in second.iterdir())))
    return (imports / "start.pyc").relative_to(tree)


def _copy(source: Path, target: Path, out: re.Pattern[str]) -> None:
    """A file, or all files of a folder but those whose path within `out` matches; links become what they point at."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and not out.match(name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name)


def _install(folder: Path, python: Interpreter) -> None:
    options = "--disable-pip-version-check --quiet install --no-deps --no-compile --only-binary :all: --require-hashes"
    pip = [sys.executable, "-m", "pip", "--python", str(python.program), *options.split()]
    done = subprocess.run([*pip, "--target", str(folder), "-r", str(LOCK)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"pip could not install {LOCK.name} for Python {python.version}:\n{done.stderr}")


def programs(tree: Path) -> list[Path]:
    """Every ELF file of the tree."""
    return [path for path in sorted(tree.rglob("*")) if path.is_file() and path.open("rb").read(4) == b"\x7fELF"]


def _drop_unneeded(imports: Path) -> None:
    """Remove libraries that came in a wheel for an extension that was left out; some name each other in a circle."""
    present = programs(imports)
    needed: set[str] = set()
    reached = [path for path in present if not _in_wheel(path)]
    while reached:
        command = ["objdump", "-p", *map(str, reached)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        new = set(re.findall(r"NEEDED +(\S+)", shown)) - needed
        needed |= new
        reached = [path for path in present if path.name in new]
    for path in present:
        if _in_wheel(path) and path.name not in needed:
            path.unlink()


def _in_wheel(path: Path) -> bool:
    """Whether it is a shared library that a wheel brings along; those have been rewritten, and strip breaks some."""
    return path.parent.suffix == ".libs"


def _add_libraries(tree: Path) -> None:
    """Put beside the tree the system's libraries that it links, all but glibc. Raises BundleError for a missing one."""
    for program in programs(tree):
        for line in subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout.splitlines():
            name, _, path = line.strip().partition(" => ")
            path = path.rpartition(" (")[0]
            if "not found" in line:
                raise BundleError(f"{program.relative_to(tree)} needs {name}, which this system lacks")
            ours = Path(path).resolve().is_relative_to(tree.resolve())
            if path and not ours and not GLIBC.fullmatch(Path(name).name):
                shutil.copy(path, tree / "lib" / name)


def _compile(imports: Path, python: Interpreter) -> None:
    """Every module to bytecode in its source's place, without a path or a time of this machine."""
    program = """
import pathlib, py_compile, sys
root = pathlib.Path(sys.argv[1])
for source in sorted(root.rglob("*.py")):
    name = source.relative_to(root).as_posix()
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(source, source.with_suffix(".pyc"), name, doraise=True, invalidation_mode=mode)
    source.unlink()
"""
    command = [str(python.program), "-S", "-c", program, str(imports)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "0"})  # the order of a set is in the bytecode


def entries(tree: Path) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and bytes of every folder and file, in an order of their own: what is alike lies together."""
    paths = sorted(tree.rglob("*"))
    for path in paths:
        if path.is_dir():
            yield path.relative_to(tree).as_posix(), 0o040700, b""
    for path in sorted(paths, key=lambda path: (path.suffix == ".so" or ".so." in path.name, path.suffix, path)):
        if path.is_file():
            mode = 0o100755 if path.parent == tree / "bin" else 0o100644
            yield path.relative_to(tree).as_posix(), mode, path.read_bytes()
