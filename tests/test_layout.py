"""The rules of the house, held by reading imports: three floors, and one home for each outside library."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("config", "handlers", "upstream", "store")
FILES = [ROOT / "app.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]

# What each room may import of the house.
FLOORS = {
    "config": set[str](),
    "store": set[str](),
    "upstream": set[str](),
    "handlers": {"config", "upstream", "store"},
    "app": {"handlers", "config", "upstream", "store"},
}
HOMES = {
    "tritonclient": {"upstream/grpc.py"},
    "aiohttp": {"upstream/fetch.py"},
    "sqlite3": {"store/sqlite.py"},
    "aiosqlite": {"store/sqlite.py"},
    "asyncpg": {"store/postgres.py"},
    "jinja2": {"upstream/template.py"},
    "tokenizers": {"upstream/tokens.py"},
    "multipart": {"handlers/door/multipart.py"},
    "av": {"upstream/media/audio.py", "upstream/media/recording.py"},
    "opentelemetry": {"handlers/seeing/tracing.py"},
    "uvicorn": {"handlers/ops/server.py", "handlers/door/protocol.py"},
}


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports, also within functions and for types only; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reads_environment(tree: ast.Module) -> bool:
    """Whether a file names os.environ or os.getenv."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return bool(names & {"environ", "environb", "getenv"}) or bool({"os.environ", "os.getenv"} & set(imports(tree)))


@pytest.fixture(params=FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def file(request: pytest.FixtureRequest) -> tuple[str, ast.Module]:
    """A file of the house: its path within, and its syntax tree."""
    path: Path = request.param
    return path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_imports_point_one_way(file: tuple[str, ast.Module]) -> None:
    name, tree = file
    room = name.split("/")[0].removesuffix(".py")
    found = {module.split(".")[0] for module in imports(tree)} & {"app", "tests", "scripts", "bench", *ROOMS}
    assert found <= FLOORS[room] | ({room} if room != "app" else set())


def test_an_endpoint_imports_no_other_and_no_store(file: tuple[str, ast.Module]) -> None:
    name, tree = file
    parts = name.split("/")
    if parts[0] != "handlers":
        return
    within = {module for module in imports(tree) if module.startswith("handlers.")}
    if len(parts) == 2:  # an endpoint, or a part of one: responses_items.py of responses.py
        own = "handlers." + parts[1].removesuffix(".py").split("_")[0] + "_"
        assert all(module.startswith(("handlers.door", own)) for module in within)
        assert not any(module.split(".")[0] == "store" for module in imports(tree))
    else:
        floors = ("handlers.door", "handlers.seeing", "handlers.ops")
        below = floors[: floors.index(f"handlers.{parts[1]}") + 1]
        assert all(module.startswith(below) for module in within)


def test_every_outside_library_has_one_home(file: tuple[str, ast.Module]) -> None:
    name, tree = file
    for library in {module.split(".")[0] for module in imports(tree)} & HOMES.keys():
        assert name in HOMES[library], f"{library} belongs into {', '.join(HOMES[library])}"
    assert name.startswith("config/") or not reads_environment(tree), "os.environ belongs into config/"


def test_every_file_says_what_it_is_for(file: tuple[str, ast.Module]) -> None:
    name, tree = file
    text = ast.get_docstring(tree)
    assert text, name
    assert not {"utils", "helper", "manager", "base", "common", "flag"} & set(Path(name).stem.split("_"))


def test_the_rules_can_be_broken() -> None:
    tree = ast.parse("def f():\n    from os import environ\n    import store.sqlite\n    from upstream import grpc")
    assert set(imports(tree)) == {"os", "os.environ", "store.sqlite", "upstream", "upstream.grpc"}
    assert reads_environment(tree)
    assert reads_environment(ast.parse("import os\nos.environ.get('X')"))
    assert not reads_environment(ast.parse("import os\nfrom os import SEEK_END\nos.urandom(8)"))
