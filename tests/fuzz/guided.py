"""Atheris, which is libFuzzer for Python: it changes inputs and keeps those that reach a new branch.

python -m tests.fuzz.guided multipart CORPUS -max_total_time=600   # one of the targets, by libFuzzer's own options
"""

import subprocess
import sys
from pathlib import Path

from tests.gateway import ROOT

FUZZ = ROOT / "var" / "fuzz"
SLOWEST = 10  # seconds that an input may take
LARGEST = 8192  # bytes of one


def run(name: str, seconds: float) -> bool:
    """Whether nothing was found in this time; what was lies in var/fuzz/, and the corpus, for the next time."""
    corpus = FUZZ / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds:.0f}", f"-timeout={SLOWEST}", f"-max_len={LARGEST}", "-print_final_stats=1"]
    options += [f"-artifact_prefix={FUZZ / name}-", "-rss_limit_mb=2048"]
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(corpus), *options]
    log = FUZZ / f"{name}.log"
    with open(log, "wb") as file:
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    said = log.read_text(errors="replace").splitlines()
    runs = next((line for line in reversed(said) if line.startswith("Done ")), f"FAILED: {log.relative_to(ROOT)}")
    print(f"{name:40} {len(list(corpus.iterdir()))} inputs kept; {runs}", flush=True)
    return status == 0


def main() -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["multipart", "handlers.door.multipart", "upstream"]):
        from tests.fuzz import targets

    name, corpus = sys.argv[1:3]
    for number, seed in enumerate(targets.seeds(name)):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
