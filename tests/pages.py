"""The Markdown that is written by hand: its blocks of code, what they say, and a folder in which they run."""

import contextlib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from openai import OpenAI

from scripts.triton import Triton
from tests.gateway import LISTENING, ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "deploy/README.md", "models/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
HERE, TRITON = "http://127.0.0.1:8080", "http://127.0.0.1:8000"  # where pages say that they are
OPERATORS = {"&&", "||", "|", ";", "&", ""}
SERVE = re.compile(r"(python app\.py|conch) serve\b[^&]*")


class Block(NamedTuple):
    """A block of code of a page. sh and python run as they are printed; bash is for another machine: one with a GPU,
    with Docker, of somebody's own."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Of a shell's block: each command by its words, those behind a pipe or in a substitution as well."""
        made: list[list[str]] = []
        waiting = ""
        for line in self.text.replace("\\\n", " ").splitlines():
            waiting += line
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                waiting += "\n"
                continue
            waiting = ""
            command: list[str] = []
            for word in [*words, ";"]:
                command.append(word.removeprefix("$(").rstrip(";)"))
                if word in OPERATORS or word[-1:] in ";)" or word.startswith("$("):
                    made.append([each for each in command if each not in OPERATORS])
                    command = []
        return [command for command in made if any(command)]


def blocks(page: Path, *languages: str) -> list[Block]:
    """Those in these languages, or all."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    made = [Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in found]
    return [block for block in made if not languages or block.language in languages]


def verbs(command: list[str]) -> list[str] | None:
    """The arguments that a command gives `python app.py`, `conch`, or the image of that name; None for others."""
    if "app.py" in command:
        return command[command.index("app.py") + 1 :]
    if command[0] in ("conch", "./conch"):
        return command[1:]
    if command[:2] == ["docker", "run"] and "conch" in command:
        return command[len(command) - command[::-1].index("conch") :] or None
    return None


def run_python(text: str, url: str, names: dict[str, Any]) -> str:
    """What an example prints; names that it makes are there for the next one."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text.replace(HERE, url), "example", "exec"), names)
    return out.getvalue()


class Reader:
    """Somebody who follows a page from top to bottom, in a folder that looks like a clone of the repository."""

    def __init__(self, folder: Path, triton: Triton) -> None:
        self.folder, self.triton = folder, triton
        self.printed = ""
        self._names: dict[str, Any] = {}
        self._server: subprocess.Popen[str] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for name in ("app.py", "config", "deploy", "models", "requirements", "scripts"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "var").mkdir()
        programs = folder / "bin"
        programs.mkdir()
        for name, line in {"python": "", "conch": f"{ROOT}/app.py "}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {line}"$@"\n')
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CONCH_SERVER__PORT": self.url.rpartition(":")[2],
            "CONCH_UPSTREAMS__LOCAL__URLS": triton.url,
            "CONCH_UPSTREAMS__LOCAL__GRPC": triton.grpc_url,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for each in self._names.values():
            if isinstance(each, OpenAI):
                each.close()

    def follow(self, block: Block) -> None:
        """Run a block; what it prints is added to `printed`. Raises AssertionError where a command fails."""
        if block.language == "python":
            with contextlib.chdir(self.folder), _environment(self.environment):
                self.printed += run_python(block.text, self.url, self._names)
            return
        lines: list[str] = []
        for command in re.split(r"(?<!\\)\n", block.text):
            if command.startswith("make "):
                if command.split()[1] == "run":
                    self.make_run()
            elif found := SERVE.fullmatch(command.partition("#")[0].removesuffix("&").strip()):
                self._shell(lines)
                lines = []
                self.serve(found[0])
            else:
                lines.append(command)
        self._shell(lines)

    def make_run(self) -> None:
        """The gateway and the key of `make run`; Triton runs already."""
        self._shell(["python app.py workspaces create dev --plan enterprise", "python app.py credits grant dev 100"])
        self._shell(
            ["python app.py keys create --workspace dev --json | grep -oE 'rp_live_[0-9a-f]{64}' > var/dev.key"]
        )
        self.serve("python app.py serve")

    def serve(self, command: str) -> None:
        """A gateway in the background, in the place of the one before, once it listens."""
        self.stop()
        self._server = subprocess.Popen(
            shlex.split(command), cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert self._server.stderr is not None
        said = []
        for line in self._server.stderr:
            said.append(line)
            if LISTENING.search(line):
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        """End what serves."""
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            _, said = self._server.communicate(timeout=40)
            assert self._server.returncode == 0, said
            self._server = None

    def _shell(self, lines: list[str]) -> None:
        """Lines of one shell, which stops at the first that fails; what it exports is there for the next one."""
        script = "\n".join(lines).replace(HERE, self.url).replace(TRITON, self.triton.url)
        # The session's Triton also has models that are made to fit no preset.
        script = re.sub(r"^(python app\.py check .*?)(\s+#.*)?$", r"\1 || test $? = 1", script, flags=re.MULTILINE)
        done = subprocess.run(
            ["sh", "-e", "-c", f"{script}\nenv -0 > .environment"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.printed += done.stdout
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        exported = (self.folder / ".environment").read_text().split("\0")
        self.environment = dict(pair.split("=", 1) for pair in exported if pair)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if name.startswith("OPENAI_")})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
