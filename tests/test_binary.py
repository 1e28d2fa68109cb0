"""dist/conch as users run it: alone in a root that holds only glibc, by another user, in an empty environment."""

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from scripts.binary import TARGET
from scripts.bundle import GLIBC, PACKAGES_OUT
from scripts.setup import which_system
from scripts.triton import Triton
from scripts.wheel import CACHE
from tests.gateway import CONFIG, LISTENING, ROOT
from tests.postgres_fixture import Postgres
from tests.test_layout import FILES, HOMES

NOBODY = 65534
ASK: Any = [{"role": "user", "content": "What does the teller do?"}]

IMPORT_LATE = "import start, sys; sys.meta_path.append(start.Second()); import numpy; print(numpy.__file__)"

CHAT_OVER_GRPC = """
[[models]]
id = "vllm-grpc"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
transport = "grpc"
chat.template = "/srv/tests/plain.jinja"
"""


class Bare:
    """A root folder with glibc, dist/conch and a configuration; `run` and `serving` enter it as nobody."""

    def __init__(self, root: Path, triton: Triton) -> None:
        self.root, self.home, self.tmp = root, root / "srv", root / "tmp"
        for library in Path("/lib/x86_64-linux-gnu").glob("*.so.*"):
            if GLIBC.fullmatch(library.name):
                self._copy(library, root / "lib/x86_64-linux-gnu" / library.name)
        self._copy(Path("/lib64/ld-linux-x86-64.so.2"), root / "lib64/ld-linux-x86-64.so.2")
        self._copy(TARGET, self.home / "conch")
        for name in ("models/assistant/chat_template.jinja", "models/assistant/tokenizer_config.json"):
            self._copy(ROOT / name, self.home / name)
        self._copy(ROOT / "tests/plain.jinja", self.home / "tests/plain.jinja")
        self._copy(CACHE / "minilm/tokenizer.json", self.home / "minilm/tokenizer.json")
        places = {"store": "/srv/conch.db", "root": "/srv", "cache": "/srv"}
        text = CONFIG.format(triton=triton.url, grpc=triton.grpc_url, **places)
        (self.home / "conch.toml").write_text(text + CHAT_OVER_GRPC)
        (root / "dev").mkdir()
        (root / "dev/null").touch()
        (root / "dev/null").chmod(0o666)
        (root / "dev/urandom").write_bytes(os.urandom(4096))  # gRPC will not start without; a device needs a real root
        self.tmp.mkdir()
        self.tmp.chmod(0o1777)
        self.enter = [str(which_system("unshare")), "--user", "--map-current-user", f"--root={root}"]
        if os.geteuid() == 0:
            self.enter = [str(which_system("chroot")), f"--userspec={NOBODY}:{NOBODY}", str(root)]
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        root.chmod(0o755)

    def _copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`/srv/conch …` with these variables and no others."""
        command = [*self.enter, "/srv/conch", *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    def python(self, inside: Path, program: str) -> subprocess.CompletedProcess[str]:
        """A program for the Python that was unpacked at `inside` the root."""
        command = [*self.enter, f"{inside}/bin/conch", "-I", "-S", "-X", "launcher=/srv/conch", "-c", program]
        environment = {"LD_LIBRARY_PATH": f"{inside}/lib"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def command(self, *arguments: str, **variables: str) -> Any:
        """What it prints with --json and our configuration."""
        done = self.run(*arguments, "--config", "/srv/conch.toml", "--json", **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def caches(self) -> list[Path]:
        """What was unpacked."""
        return sorted(path for path in self.tmp.glob("*/*") if path.is_dir())

    def unpacked(self) -> Path:
        """The one version in the cache, once nobody is at work on it any more."""
        assert self.run("version").returncode == 0
        [home] = self.caches()
        with home.with_name(f".{home.name}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return home


@pytest.fixture(scope="module")
def bare(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A root of this module's own."""
    if not TARGET.exists():
        pytest.fail("make binary builds it")
    root = tmp_path_factory.mktemp("bare")
    yield Bare(root, triton)
    shutil.rmtree(root)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(bare: Bare, postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    """`conch serve` on either store with the SDK before it; SIGTERM ends it with status 0."""
    store = {"CONCH_STORE__URL": postgres.database()} if request.param == "postgresql" else {}
    bare.command("workspaces", "create", "acme", "--plan", "enterprise", **store)
    key = bare.command("keys", "create", "--workspace", "acme", **store)["key"]
    command = [*bare.enter, "/srv/conch", "serve", "--config", "/srv/conch.toml"]
    with subprocess.Popen(command, env=store, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = next(filter(None, map(LISTENING.search, process.stderr)))[1]
            with OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, _strict_response_validation=True) as sdk:
                yield sdk
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read()
            process.wait(timeout=40)
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.binary
def test_it_tells_what_it_is(bare: Bare) -> None:
    told = json.loads(bare.run("version", "--json").stdout)
    assert told["version"] == "0.1.0"
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", told["commit"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["built"])
    digest, name = TARGET.with_suffix(".sha256").read_text().split()
    assert name == "conch"
    assert subprocess.run(["sha256sum", TARGET], check=True, capture_output=True).stdout.decode().split()[0] == digest


@pytest.mark.binary
def test_it_unpacks_once_for_its_user_alone(bare: Bare) -> None:
    shutil.rmtree(bare.unpacked().parent)
    with ThreadPoolExecutor() as threads:
        starts = list(threads.map(lambda _: bare.run("version"), range(4)))
    assert [start.returncode for start in starts] == [0] * 4, starts[0].stderr
    [home] = bare.caches()
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (home, home.parent))
    before = home.stat().st_ino
    assert bare.unpacked() == home
    assert home.stat().st_ino == before
    assert (home / "second" / "numpy").exists()
    cleaned = [path for path in home.rglob("*") if path.is_file() and not path.stat().st_mode & stat.S_ISVTX]
    assert not cleaned  # tmpfiles.d(5): what has the sticky bit does not age


@pytest.mark.binary
def test_a_start_that_was_killed_leaves_no_harm(bare: Bare) -> None:
    home = bare.unpacked()
    home.rename(home.with_name(f".{home.name}.part"))
    (home.with_name(f".{home.name}.part") / "bin" / "conch").write_text("cut sh")
    assert bare.run("version").returncode == 0
    assert bare.caches() == [home]


@pytest.mark.binary
def test_what_a_power_failure_may_have_spoilt_is_made_anew(bare: Bare) -> None:
    home = bare.unpacked()
    (home / "second").rename(home / ".second")
    (home / "lib" / "libcrypto.so.3").write_bytes(b"")
    assert bare.unpacked() == home
    assert (home / "lib" / "libcrypto.so.3").stat().st_size > 1_000_000
    assert (home / "second").exists()
    assert not (home / ".second").exists()


@pytest.mark.binary
def test_a_home_that_is_in_use_is_not_made_anew_but_finished(bare: Bare) -> None:
    home = bare.unpacked()
    shutil.rmtree(home / "second")
    before = home.stat().st_ino
    running = os.open(home, os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_SH)
    try:
        assert bare.unpacked().stat().st_ino == before
        assert (home / "second" / "numpy").exists()
    finally:
        os.close(running)


@pytest.mark.binary
def test_an_import_waits_for_what_is_not_unpacked_yet(bare: Bare) -> None:
    home = bare.unpacked()
    shutil.rmtree(home / "second")
    inside = Path("/") / home.relative_to(bare.root)
    done = bare.python(inside, IMPORT_LATE)
    assert (done.stdout.strip(), done.stderr) == (f"{inside}/second/numpy/__init__.pyc", "")


@pytest.mark.binary
def test_an_import_waits_where_no_child_is_waited_for(bare: Bare) -> None:
    home = bare.unpacked()
    shutil.rmtree(home / "second")
    ignored = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    done = bare.python(Path("/") / home.relative_to(bare.root), ignored + IMPORT_LATE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.binary
def test_that_the_rest_cannot_be_unpacked_is_one_sentence(bare: Bare) -> None:
    home = bare.unpacked()
    shutil.rmtree(home / "second")
    program = """
import os, runpy, sys
sys._xoptions["launcher"] = "/srv/none"
os.environ["CONCH_STORE__URL"] = "postgresql://nobody@127.0.0.1:1/none"
sys.argv[1:] = ["keys", "list"]
runpy.run_module("start", run_name="__main__")
"""
    done = bare.python(Path("/") / home.relative_to(bare.root), program)
    why = "The rest of the libraries is in /srv/none, which cannot run (No such file or directory): put it back."
    assert (done.returncode, done.stderr) == (1, f"conch: {why}\n")


@pytest.mark.binary
def test_versions_that_nobody_uses_are_removed(bare: Bare) -> None:
    home = bare.unpacked()
    names = {".0.0.0-killed.part": 31, "0.0.1-unused": 31, "0.0.2-running": 31, "0.0.3-recent": 29}
    for name, days in names.items():
        (home.with_name(name) / "bin").mkdir(parents=True)
        for path in (home.with_name(name) / "bin", home.with_name(name)):
            shutil.chown(path, home.stat().st_uid)
        os.utime(home.with_name(name), times=(0, time.time() - days * 86_400))
    shutil.rmtree(home)
    running = os.open(home.with_name("0.0.2-running"), os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_SH)
    try:
        assert bare.run("version").returncode == 0
        with home.with_name(f".{home.name}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert {path.name for path in bare.caches()} == {home.name, "0.0.2-running", "0.0.3-recent"}
    finally:
        os.close(running)
        for name in names:
            shutil.rmtree(home.with_name(name), ignore_errors=True)


@pytest.mark.binary
@pytest.mark.parametrize("variables", [{"HOME": "/srv/home"}, {"HOME": "/srv", "XDG_CACHE_HOME": "/srv/xdg"}])
def test_the_cache_of_its_user_comes_first(bare: Bare, variables: dict[str, str]) -> None:
    (bare.home / "home").mkdir(exist_ok=True)
    shutil.chown(bare.home / "home", bare.home.stat().st_uid)
    assert bare.run("version", **variables).returncode == 0
    place = "xdg" if "XDG_CACHE_HOME" in variables else "home/.cache"
    assert [path for path in (bare.home / place / "conch").iterdir() if path.is_dir()]


@pytest.mark.binary
def test_a_folder_of_others_is_not_trusted(bare: Bare) -> None:
    ours = bare.tmp / f"conch-{bare.home.stat().st_uid}"
    assert bare.run("version").returncode == 0
    ours.chmod(0o777)
    try:
        done = bare.run("version", HOME="/nowhere")
    finally:
        ours.chmod(0o700)
    assert done.returncode == 1
    assert "set XDG_CACHE_HOME" in done.stderr
    assert "/nowhere/.cache/conch: " in done.stderr
    assert "is not a folder that this user owns and nobody else may write" in done.stderr


@pytest.mark.binary
def test_a_folder_that_its_loader_would_misread_is_not_used(bare: Bare) -> None:
    for name in ("an:other", "an;other", "$LIB"):
        (bare.home / name).mkdir()
        shutil.chown(bare.home / name, bare.home.stat().st_uid)
        done = bare.run("version", XDG_CACHE_HOME=f"/srv/{name}")
        assert (done.returncode, done.stderr) == (0, "")
        assert not list((bare.home / name).iterdir())


@pytest.mark.binary
def test_a_disk_without_room_for_both_layers_is_not_used(bare: Bare) -> None:
    small = bare.home / "small"
    small.mkdir()
    apart = [str(which_system("unshare")), "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    mount = 'mount -t tmpfs -o size=100m,mode=1777 small "$0" && "$@" && ls "$0/conch"'
    command = [*apart, "/bin/sh", "-c", mount, str(small), *bare.enter, "/srv/conch", "version"]
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": "/srv/small"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3  # of `version`; nothing was left there


@pytest.mark.binary
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_starts_where_a_standard_stream_is_closed(bare: Bare, closed: str) -> None:
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *bare.enter, "/srv/conch", "version"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("commit" in done.stdout) == (" >&-" not in f" {closed}")


@pytest.mark.binary
def test_its_default_settings_are_inside(bare: Bare) -> None:
    models = json.loads(bare.run("models", "--json").stdout)
    assert {"assistant", "minilm", "voice"} <= {model["id"] for model in models}
    assert "cannot be read" in bare.run("models", "--config", "/srv/none.toml").stderr


@pytest.mark.binary
def test_check_binds_every_kind_of_model(bare: Bare) -> None:
    done = bare.run("check", "--config", "/srv/conch.toml", "--json")
    found = {model["id"]: model for model in json.loads(done.stdout)}
    bound = {name for name, model in found.items() if model["verified"]}
    assert {"assistant", "ensemble", "minilm", "vllm-embed-grpc", "reranker", "diffusion", "voice", "listener"} <= bound
    assert bound == found.keys() - {"absent", "f5"}, {name: found[name] for name in found.keys() - bound}


@pytest.mark.binary
def test_it_serves(served: OpenAI) -> None:
    said = served.chat.completions.create(model="assistant", messages=ASK, temperature=0)
    assert said.usage
    pieces = list(served.chat.completions.create(model="assistant", messages=ASK, temperature=0, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == (
        said.choices[0].message.content
    )
    by_grpc = served.chat.completions.create(model="vllm-grpc", messages=ASK, temperature=0)
    by_http = served.chat.completions.create(model="vllm", messages=ASK, temperature=0)
    assert by_grpc.choices[0].message.content == by_http.choices[0].message.content
    streamed = list(served.chat.completions.create(model="vllm-grpc", messages=ASK, temperature=0, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in streamed if piece.choices) == (
        by_grpc.choices[0].message.content
    )
    over_http, over_grpc = (
        served.embeddings.create(model=model, input=["a", "b"], encoding_format="float").data
        for model in ("vllm-embed", "vllm-embed-grpc")
    )
    assert [one.embedding for one in over_http] == [one.embedding for one in over_grpc]
    assert len(served.embeddings.create(model="minilm", input="a", encoding_format="float").data[0].embedding) == 384
    picture = served.images.generate(model="diffusion", prompt="a shell", size="64x64", response_format="b64_json")
    assert picture.data
    assert (picture.data[0].b64_json or "").startswith("iVBOR")  # a PNG


@pytest.mark.binary
def test_what_it_left_out_is_refused_by_name(served: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="holds no audio codecs and cannot make mp3") as refused:
        served.audio.speech.create(model="voice", voice="alloy", input="Good morning.")
    assert refused.value.param == "response_format"
    with pytest.raises(BadRequestError, match="holds no audio codecs and cannot read wav, mp3"):
        served.audio.transcriptions.create(model="listener", file=("said.wav", b"RIFF"))


@pytest.mark.binary
def test_every_library_in_it_loads(bare: Bare) -> None:
    inside = Path("/") / bare.unpacked().relative_to(bare.root)
    program = f"""
import ctypes, pathlib, start, sys
sys.meta_path.append(start.Second())
for path in sorted(pathlib.Path("{inside}").rglob("*.so*")):
    ctypes.CDLL(str(path))
import aiohttp, asyncpg, aiosqlite, grpc.aio, jinja2, multipart, numpy.linalg, tokenizers, zoneinfo
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin, _webp
from tritonclient.grpc import service_pb2
"""
    done = bare.python(inside, program)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_that_has_a_home_here_is_left_out_but_the_codecs() -> None:
    out = {name for name in HOMES if PACKAGES_OUT.match(f"{name}/grpc/service_pb2.py")}
    assert out == {"av"}
    assert len(FILES) > 50
