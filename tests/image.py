"""deploy/Dockerfile without Docker: its instructions, and the root that it makes, entered as its user and read-only."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from scripts.setup import which_system
from tests.gateway import LISTENING, ROOT

FILE = ROOT / "deploy" / "Dockerfile"
# In a mount namespace of its own: what the image and the system give is read-only, $1 what is not; then as the user.
ENTER = """
set -e
root=$1 volume=$2 user=$3; shift 3
mount --bind "$root" "$root"
for folder in $BOUND; do
    mkdir -p "$root/$folder"
    mount --rbind "/$folder" "$root/$folder"
done
mount --bind "$VENV" "$root/srv/conch/.venv"
for folder in $BOUND srv/conch/.venv; do
    case $folder in dev|proc) ;; *) mount -o remount,bind,ro "$root/$folder" ;; esac
done
mount -o remount,bind,ro "$root"
mount --bind "$volume" "$root/var/lib/conch"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot ${user:+--userspec="$user"} "$root" /usr/bin/env -i "$@"
"""


class Stage:
    """One stage of a Dockerfile: its instructions in order, as (WORD, rest)."""

    def __init__(self, base: str, name: str) -> None:
        self.base, self.name = base, name
        self.instructions: list[tuple[str, str]] = []

    def all(self, word: str) -> list[str]:
        """What stands behind each instruction of this name."""
        return [rest for each, rest in self.instructions if each == word]

    def one(self, word: str) -> str:
        """The only one of its name."""
        (found,) = self.all(word)
        return found

    def command(self, word: str) -> list[str]:
        """ENTRYPOINT, CMD or HEALTHCHECK's CMD in its exec form; ValueError in the form that goes through a shell."""
        text = self.one(word)
        command: list[str] = json.loads(text[text.index("[") if word == "HEALTHCHECK" else 0 :])
        return command

    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(pair.split("=", 1) for rest in self.all("ENV") for pair in shlex.split(rest))


def stages() -> list[Stage]:
    """The Dockerfile's, the last of which is the image."""
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    made: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            made.append(Stage(base, name))
        else:
            made[-1].instructions.append((word, rest))
    return made


def sources(stage: Stage) -> list[tuple[str, str]]:
    """What a stage takes from the build's context: its path there, and where it goes."""
    copied = [shlex.split(rest) for rest in stage.all("COPY")]
    return [(source, parts[-1]) for parts in copied if not parts[0].startswith("--from") for source in parts[:-1]]


def ignored(path: str) -> bool:
    """Whether Dockerfile.dockerignore keeps a path out of the context: the last line that fits decides."""
    out = False
    for line in (FILE.parent / "Dockerfile.dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            out = not line.startswith("!")
    return out


class Image:
    """The image's root in a folder: what it copies, beside this system's Python and this environment's packages."""

    def __init__(self, folder: Path) -> None:
        self.root, self.volume = folder / "root", folder / "volume"
        packages, self.final = stages()
        self.workdir = self.final.one("WORKDIR")
        self.user = self.final.one("USER")
        for name in ("etc/conch", "tmp", "var/lib/conch", self.workdir[1:] + "/.venv"):
            (self.root / name).mkdir(parents=True)
        for source, target in sources(packages):
            at = self.root / packages.one("WORKDIR")[1:] / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, at, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                at.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, at)
        self.volume.mkdir(0o700)
        root = os.geteuid() == 0
        if root:
            os.chown(self.volume, *map(int, self.user.split(":")))
        folder.chmod(0o755)
        mapped = [] if root else ["--user", "--map-root-user"]
        self.unshared = [str(which_system("unshare")), "--mount", *mapped]
        self.script = [*self.unshared, "sh", "-c", ENTER, "enter"]
        self.script += [str(self.root), str(self.volume), self.user if root else ""]

    def refused(self) -> str:
        """What keeps this user from entering it, such as a kernel without user namespaces; empty where nothing does."""
        return subprocess.run([*self.unshared, "true"], capture_output=True, text=True, check=False).stderr.strip()

    def enter(self, *command: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        """A command within, with the image's environment and these variables; what Popen takes."""
        environment = self.final.environment() | variables
        base = Path(sys.base_prefix).relative_to("/")
        bound = [name for name in ("usr", "bin", "sbin", "lib", "lib64", "dev", "proc") if Path("/", name).exists()]
        if base.parts[0] != "usr":
            bound.append(str(base))
        outside = {"BOUND": " ".join(bound), "VENV": str(ROOT / ".venv"), "PATH": os.environ["PATH"]}
        inside = [f"{name}={value}" for name, value in environment.items()]
        return [*self.script, *inside, "sh", "-c", f'cd {self.workdir} && exec "$@"', "sh", *command], outside

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """One command, to its end."""
        line, outside = self.enter(*command, **variables)
        return subprocess.run(line, env=outside, capture_output=True, text=True, check=False, timeout=60)

    def conch(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`docker exec … python app.py …`."""
        return self.run(*self.final.command("ENTRYPOINT"), *arguments, **variables)

    @contextlib.contextmanager
    def serving(self, log: list[str], **variables: str) -> Iterator[str]:
        """`docker run`: yields its address; SIGTERM ends it, with status 0."""
        line, outside = self.enter(*self.final.command("ENTRYPOINT"), *self.final.command("CMD"), **variables)
        with subprocess.Popen(line, env=outside, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                for said in process.stderr:
                    log.append(said)
                    if found := LISTENING.search(said):
                        yield found[1]
                        break
            finally:
                process.send_signal(signal.SIGTERM)
                log.extend(process.stderr)
                process.wait(timeout=40)
        assert process.returncode == 0, "".join(log)
