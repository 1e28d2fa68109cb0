"""The gateway as an operator runs it: a process of its own on a free port, and the command line beside it."""

import contextlib
import json
import re
import subprocess
import sys
import wave
from array import array
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import IO, Any

from scripts.wheel import CACHE
from tests import secrecy

ROOT = Path(__file__).resolve().parents[1]
LISTENING = re.compile(r"listening on (https?://\S+)")

STORED = array("h", range(0, 24_000, 4)).tobytes()  # a recording to imitate: 6,000 samples

# One configuration for most tests: the assistant, and every contract model under a profile of its own.
CONFIG = """
[server]
port = 0
body_timeout = "2s"
header_timeout = "2s"

[store]
url = "sqlite:{store}"

[upstreams.local]
urls = ["{triton}"]
grpc = ["{grpc}"]
check_every = "1s"

[[models]]
id = "assistant"
task = "chat"
aliases = ["gpt-4o-mini", "acme/assistant"]
upstream = "local"
model = "assistant"
preset = "vllm"
chat = {{ template = "{root}/models/assistant", tools = "hermes", reasoning = "think" }}

[[models]]
id = "vllm"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "ensemble"
task = "chat"
upstream = "local"
model = "ensemble"
preset = "trtllm"
max_output = 2048
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "bls"
task = "chat"
upstream = "local"
model = "tensorrt_llm_bls"
preset = "trtllm"
chat.template = "{root}/tests/plain.jinja"
out.text = {{ tensor = "text_output", mode = "cumulative", trim_stop = true }}

[[models]]
id = "llmapi"
task = "chat"
upstream = "local"
model = "tensorrt_llm"
preset = "trtllm-llmapi"
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "private"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
workspaces = ["other"]
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "absent"
task = "chat"
upstream = "local"
model = "no_such_model"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"

[[models]]
id = "minilm"
task = "embedding"
upstream = "local"
model = "minilm"
transport = "infer"
embedding = {{ tokenizer = "{cache}/minilm/tokenizer.json", max_tokens = 256 }}
in.text = "input"
out = {{ embedding = "embedding", prompt_tokens = "tokens" }}

[[models]]
id = "embed-text"
task = "embedding"
upstream = "local"
model = "embed_text"
preset = "text-embed"
embedding.matryoshka = true

[[models]]
id = "onnx-embed"
task = "embedding"
upstream = "local"
model = "onnx_embed"
preset = "onnx-embed"
embedding = {{ tokenizer = "{cache}/minilm/tokenizer.json", normalize = false, accepts_token_ids = true }}

[[models]]
id = "vllm-embed"
task = "embedding"
upstream = "local"
model = "vllm_embed"
preset = "vllm-embed"

[[models]]
id = "vllm-embed-grpc"
task = "embedding"
upstream = "local"
model = "vllm_embed"
preset = "vllm-embed"
transport = "grpc"

[[models]]
id = "reranker"
task = "rerank"
upstream = "local"
model = "reranker"
preset = "cross-encoder"
rerank.tokenizer = "{cache}/minilm/tokenizer.json"

[[models]]
id = "voice"
task = "speech"
upstream = "local"
model = "voice"
transport = "grpc"
speech.voices = {{ alloy = {{}}, nova = {{}}, onyx = {{}}, storyteller = {{ name = "fable" }} }}
in = {{ text = "text", voice = "voice.name", speed = "speed", language = "language" }}
out.audio = {{ tensor = "waveform", rate = 22050 }}

[[models]]
id = "f5"
task = "speech"
upstream = "local"
model = "f5_tts"
preset = "zero-shot-tts"
speech.voices.stored = {{ wav = "stored.wav", text = "What it says." }}

[[models]]
id = "spark"
task = "speech"
upstream = "local"
model = "spark_tts"
preset = "zero-shot-tts"
transport = "grpc"
speech.rate = 16000
out.audio = {{ tensor = "waveform", rate = 16000, overlap = "100ms" }}

[[models]]
id = "speaker"
task = "speech"
upstream = "local"
model = "speaker_tts"
transport = "grpc"
in.INPUT_TEXT = "text"
in.INPUT_SPEAKER_ID = "voice.name"
in.INPUT_LANGUAGE_ID = {{ from = "language", default = "hi" }}
out.audio = {{ tensor = "OUTPUT_GENERATED_AUDIO", rate = 8000 }}

[[models]]
id = "listener"
task = "transcription"
upstream = "local"
model = "listener"
preset = "whisper"
transcription = {{ languages = ["en"], translates = false }}

[[models]]
id = "whisper"
task = "transcription"
upstream = "local"
model = "whisper"
preset = "whisper"

[[models]]
id = "whisper-decoupled"
task = "transcription"
upstream = "local"
model = "whisper_decoupled"
preset = "whisper"
transport = "grpc"
out.text = {{ tensor = "TRANSCRIPTS", mode = "cumulative" }}

[[models]]
id = "wav-asr"
task = "transcription"
upstream = "local"
model = "wav_asr"
preset = "wav-asr"

[[pipelines]]
id = "pipe_support"
workspace = "acme"
models = {{ chat = "assistant" }}

[[pipelines]]
id = "pipe_sales"
workspace = "acme"
models = {{ chat = "vllm" }}

[[pipelines]]
id = "pipe_audio"
workspace = "acme"
models = {{ speech = "voice", transcription = "whisper" }}

[[pipelines]]
id = "pipe_other"
workspace = "other"
models = {{ chat = "private" }}

[[models]]
id = "diffusion"
task = "image"
upstream = "local"
model = "diffusion"
preset = "sd"
image = {{ sizes = ["64x64..2048x2048"] }}
in.height = "size.height"
in.width = "size.width"
in.seed = "seed"
in.steps = "steps"
in.guidance_scale = "guidance"

[[models]]
id = "sd"
task = "image"
upstream = "local"
model = "sd"
preset = "sd"
image.max_n = 10

[[models]]
id = "sd-bls"
task = "image"
upstream = "local"
model = "sd_bls"
preset = "sd-bls"
"""


ONE = """
[server]
port = 0

[store]
url = "sqlite:{store}"

[upstreams.local]
urls = ["{triton}"]

[[models]]
id = "vllm"
task = "chat"
upstream = "local"
model = "vllm"
preset = "vllm"
chat.template = "{root}/tests/plain.jinja"
"""
"""A configuration with one chat model, to whose entry lines may be added."""


class Conch:
    """`python app.py serve` with a configuration and a store of its own; `log` is what it has said so far."""

    def __init__(self, folder: Path, triton: str, config: str = CONFIG, grpc: str = "127.0.0.1:1") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "conch.toml"
        self.store = folder / "conch.db"
        self.config.write_text(config.format(store=self.store, triton=triton, grpc=grpc, root=ROOT, cache=CACHE))
        with wave.open(str(folder / "stored.wav"), "wb") as recording:
            recording.setparams((1, 2, 24_000, 0, "NONE", ""))
            recording.writeframes(STORED)
        self.log: list[str] = []
        self.status = 0  # with which it is to end
        self.url = ""
        self.stdout: IO[bytes] | None = None
        self.before: list[str] = []  # a command that runs it
        self.files: tuple[int, ...] = ()  # that it inherits

    @contextlib.contextmanager
    def running(self, **variables: str) -> Iterator["Conch"]:
        """Serve until the block ends; it must have ended cleanly by then."""
        process = subprocess.Popen(
            [*self.before, sys.executable, "app.py", "serve", "--config", str(self.config)],
            cwd=ROOT,
            pass_fds=self.files,
            env={"PATH": "", "CONCH_STORE__URL": f"sqlite:{self.store}", **variables},
            stdout=self.stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        self.pid = process.pid
        try:
            self._await_address(process.stderr)
            follower = Thread(target=self.log.extend, args=(process.stderr,), daemon=True)
            follower.start()
            yield self
            process.terminate()
            follower.join(timeout=40)
        finally:
            process.terminate()
            status = process.wait(timeout=40)
            process.stderr.close()
        assert status == self.status, "".join(self.log)
        secrecy.check_log(self.log)
        secrecy.check_files(self.store)

    def command(self, *arguments: str, status: int = 0) -> Any:
        """`python app.py …`: what it printed with --json, or its one sentence on stderr when it is to fail."""
        done = subprocess.run(
            [sys.executable, "app.py", *arguments, "--config", str(self.config), "--json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else done.stderr

    def workspace(self, name: str, plan: str = "enterprise", *arguments: str) -> None:
        """A new workspace."""
        self.command("workspaces", "create", name, "--plan", plan, *arguments)

    def key(self, workspace: str, *arguments: str) -> str:
        """The secret of a new key."""
        key: str = self.command("keys", "create", "--workspace", workspace, *arguments)["key"]
        return key

    def _await_address(self, stderr: IO[str]) -> None:
        for line in stderr:
            self.log.append(line)
            if found := LISTENING.search(line):
                self.url = found[1]
                return
        raise AssertionError("the gateway did not start:\n" + "".join(self.log))
