"""What a live Triton model is: which preset or shape it has, as the lines of a [[models]] entry and why they are so."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import config
from config import ConfigError, Model
from upstream.contract import Contract, NotBound, Tensor
from upstream.tasks import TASKS

UPSTREAM = "triton"
DEPTH = 5  # folders below the working directory in which a file is looked for
NOT_OURS = {"node_modules", "site-packages", "__pycache__"}
FLOATS = {"FP32", "FP16"}
WAVE = re.compile(r"wave|audio|speech|sound|wav", re.IGNORECASE)
NAMED = ("tokenizer_dir", "tokenizer")  # parameters of TensorRT-LLM's preprocessing, and of models/reranker
RATES = ("sample_rate", "sampling_rate", "audio_sample_rate")
TOKENIZED = {"embedding": "embedding", "rerank": "rerank"}

# Optional tensors, by their usual names, and the sources that belong into them.
EXTRAS: dict[str, dict[str, str]] = {
    "image": {
        "seed": "seed",
        "steps": "steps",
        "num_inference_steps": "steps",
        "guidance": "guidance",
        "guidance_scale": "guidance",
    },
    "speech": {"voice": "voice.name", "speaker": "voice.name", "speed": "speed", "language": "language"},
}
SIZES = {"height": "size.height", "width": "size.width"}
# What a chat template writes around a call, and the family of parsers that reads it.
TOOLS = (
    ("<|python_tag|>", "llama3_json"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<｜tool▁calls▁begin｜>", "deepseek"),
    ("<|channel|>", "harmony"),
    ("<tool_call>", "hermes"),
)


class Parameter(msgspec.Struct):
    """A value of `parameters` in config.pbtxt."""

    string_value: str = ""


class Step(msgspec.Struct):
    """A model that an ensemble calls."""

    model_name: str = ""


class Scheduling(msgspec.Struct):
    """ensemble_scheduling."""

    step: list[Step] = []


class Live(Contract):
    """A model's configuration, with what only recognition reads."""

    parameters: dict[str, Parameter] = msgspec.field(default_factory=dict)
    ensemble_scheduling: Scheduling = msgspec.field(default_factory=Scheduling)


class Line(NamedTuple):
    """A setting of an entry. One without a value is still to be given: the note says what."""

    path: tuple[str, ...]
    value: Any
    note: str = ""


class Own(NamedTuple):
    """The files of one model, each with why it is that, as they are named in a file that lies in `home`."""

    home: Path
    template: tuple[str, str] | None
    tokenizer: tuple[str, str] | None


class Files:
    """The tokenizers and chat templates below `root`, as they are named in a file that lies in `home`."""

    def __init__(self, root: Path, home: Path) -> None:
        self.home = home
        self._root = root
        self.templates: set[Path] = set()
        self.tokenizers: set[Path] = set()
        for path in _below(root, DEPTH):
            if path.name == "chat_template.jinja" or (path.name == "tokenizer_config.json" and _templated(path)):
                self.templates.add(path.parent)
            elif path.name == "tokenizer.json":
                self.tokenizers.add(path)

    def of(self, live: Live, models: Mapping[str, Live]) -> Own:
        """Those of a model: they lie in a folder of its name, or of the one that its parameters name."""
        steps = [models[step.model_name] for step in live.ensemble_scheduling.step if step.model_name in models]
        told = [
            each.parameters[name].string_value for each in (live, *steps) for name in NAMED if name in each.parameters
        ]
        names = {live.name, *(Path(each).name for each in told)}
        others = models.keys() - names
        return Own(
            self.home,
            self._choose(self.templates, names, others),
            self._choose(self.tokenizers, names, others),
        )

    def _choose(self, found: set[Path], names: set[str], others: set[str]) -> tuple[str, str] | None:
        """That of `found` which bears one of a model's `names`, or the only one, if it bears none of `others`; why."""
        own, free = [], []
        for path in found:
            parts = set(path.relative_to(self._root).parts)
            if name := names & parts:
                own.append((path, f"it lies in {min(name)}"))
            elif not others & parts:
                free.append((path, "the only one that was found: see that it is this model's"))
        for candidates in (own, free):
            if len(candidates) == 1:
                ((path, why),) = candidates
                return os.path.relpath(path, self.home), why
            if candidates:
                return None
        return None


def entry(live: Live, models: Mapping[str, Live], files: Files, *, grpc: bool) -> list[Line] | None:
    """The lines of a model's entry; None for one that is like nothing known. `grpc`: the upstream has an address."""
    own = files.of(live, models)
    lines = _by_preset(live, own) or _embedding(live, own) or _speech(live, own)
    if lines is None:
        return None
    if live.transaction.decoupled and _value(lines, "task") in ("image", "speech", "transcription"):
        note = "it is decoupled" if grpc else "it is decoupled: give [upstreams.triton] the address of its gRPC, grpc"
        lines.append(Line(("transport",), "grpc", note))
        if _value(lines, "preset") == "whisper":
            lines.append(Line(("out", "text"), {"tensor": "TRANSCRIPTS", "mode": "cumulative"}))
    return [*lines, *_extras(live, lines, own), *_sizes(live, lines)]


def parts(models: Mapping[str, Live]) -> dict[str, str]:
    """The models that an ensemble is made of, and the ensemble."""
    return {step.model_name: name for name, live in models.items() for step in live.ensemble_scheduling.step}


def table(lines: list[Line]) -> dict[str, Any]:
    """Lines as the table that TOML makes of them."""
    made: dict[str, Any] = {}
    for path, value, _ in lines:
        if value is None:
            continue
        inner = made
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return made


def written(line: Line) -> str:
    """A line as TOML; one without a value as a comment."""
    key = ".".join(part if re.fullmatch(r"[\w-]+", part, re.ASCII) else json.dumps(part) for part in line.path)
    if line.value is None:
        return f"# {key} = …  # {line.note}"
    return f"{key} = {_toml(line.value)}" + (f"  # {line.note}" if line.note else "")


def tensor(each: Tensor) -> str:
    """A tensor for people."""
    return f"{each.name} {each.dtype} {each.dims}{' (optional)' if each.optional else ''}"


def _by_preset(live: Live, own: Own) -> list[Line] | None:
    """The preset of which the model has most, if its binding holds."""
    best: tuple[int, list[Line]] | None = None
    for preset in config.presets():
        if preset.startswith("vllm") and (preset == "vllm-embed") != ("embed" in live.name.lower()):
            continue  # the backend's tensors are the same for both kinds of models
        lines = [*_head(live), Line(("preset",), preset)]
        settings = _settings(lines, own)
        lines.insert(1, Line(("task",), settings.task))
        lines += _files(live, settings, own)
        if preset == "trtllm" and live.parameters.get("accumulate_tokens", Parameter()).string_value == "true":
            lines.append(
                Line(("out", "text"), {"tensor": "text_output", "mode": "cumulative", "trim_stop": True}, "accumulates")
            )
        if not _holds(live, lines, own):
            continue
        named = {name for name, said in settings.inputs.items() if said is not False}
        named |= {said if isinstance(said, str) else said.tensor for said in settings.outputs.values()} - {"infer"}
        there = named & {each.name for each in (*live.inputs, *live.outputs)}
        score = 2 * len(there) - len(named)
        if score > 0 and (best is None or score > best[0]):
            best = score, lines
    return None if best is None else best[1]


def _embedding(live: Live, own: Own) -> list[Line] | None:
    """One text in, a vector of a fixed length out."""
    needed = [each for each in live.inputs if not each.optional]
    vectors = [each for each in live.outputs if each.dtype in FLOATS and len(each.dims) == 1 and each.dims[0] > 1]
    if len(needed) != 1 or needed[0].dtype != "BYTES" or len(vectors) != 1:
        return None
    lines = [
        *_head(live, "embedding"),
        Line(("transport",), "infer"),
        Line(("in", needed[0].name), "input", "the one text that it takes"),
        Line(("out", "embedding"), vectors[0].name, f"{vectors[0].dims[0]} numbers"),
    ]
    counts = [each.name for each in live.outputs if "INT" in each.dtype and "token" in each.name.lower()]
    if len(counts) == 1:
        lines.append(Line(("out", "prompt_tokens"), counts[0]))
    return lines if _holds(live, lines, own) else None


def _speech(live: Live, own: Own) -> list[Line] | None:
    """One text in, a waveform of any length out."""
    needed = [each for each in live.inputs if not each.optional]
    waves = [each for each in live.outputs if each.dims == [-1] and WAVE.search(each.name) and each.dtype != "BYTES"]
    if len(needed) != 1 or needed[0].dtype != "BYTES" or len(waves) != 1:
        return None
    lines = [*_head(live, "speech"), Line(("in", needed[0].name), "text")]
    rates = [live.parameters[name].string_value for name in RATES if name in live.parameters]
    if rates and rates[0].isdecimal():
        out = Line(("out", "audio"), {"tensor": waves[0].name, "rate": int(rates[0])}, "of its parameters")
    else:
        out = Line(("out", "audio"), None, f'{{ tensor = "{waves[0].name}", rate = … }}: Triton tells no sample rate')
    trial = [*lines, Line(("out", "audio"), {"tensor": waves[0].name, "rate": 24_000})]
    return [*lines, out] if _holds(live, trial, own) else None


def _head(live: Live, task: str | None = None) -> list[Line]:
    own = [] if task is None else [Line(("task",), task)]
    return [Line(("id",), live.name), *own, Line(("upstream",), UPSTREAM), Line(("model",), live.name)]


def _files(live: Live, settings: Model, own: Own) -> Iterator[Line]:
    """The files that Triton does not give: a chat template, a tokenizer."""
    if settings.task == "chat":
        found = own.template
        if found is None:
            yield Line(("chat", "template"), None, "needed: the tokenizer_config.json that came with the weights")
            return
        yield Line(("chat", "template"), *found)
        text = "".join(path.read_text() for path in (own.home / found[0]).glob("*t*.j*") if path.is_file())
        for sign, family in TOOLS:
            if sign in text:
                yield Line(("chat", "tools"), family, f"its template writes {sign}")
                break
        if "<think>" in text:
            yield Line(("chat", "reasoning"), "think", "its template writes <think>")
    elif settings.task in TOKENIZED and any(
        isinstance(source, str) and source.startswith("tokens.") for source in settings.inputs.values()
    ):
        found = own.tokenizer
        path = (TOKENIZED[settings.task], "tokenizer")
        if found is None:
            yield Line(path, None, "needed: the tokenizer.json that came with the weights")
        else:
            yield Line(path, *found)


def _extras(live: Live, lines: list[Line], own: Own) -> Iterator[Line]:
    """Optional tensors that nothing fills yet and that bear a usual name."""
    known = EXTRAS.get(str(_value(lines, "task")), {})
    filled = {line.path[1] for line in lines if line.path[0] == "in"} | set(_settings(lines, own).inputs)
    for each in live.inputs:
        if each.optional and each.name not in filled and each.name.lower() in known:
            line = Line(("in", each.name), known[each.name.lower()])
            if _holds(live, [*lines, line], own):
                yield line


def _sizes(live: Live, lines: list[Line]) -> Iterator[Line]:
    """Of pictures: tensors for the size are of use once it is known which ones the model draws."""
    if _value(lines, "task") != "image":
        return
    names = [each.name for each in live.inputs if each.name.lower() in SIZES]
    if names:
        yield Line(("image", "sizes"), None, '["512x512"]: those that it draws; and with that the next lines')
        for name in names:
            yield Line(("in", name), None, f'"{SIZES[name.lower()]}"')


def _holds(live: Live, lines: list[Line], own: Own) -> bool:
    """Whether the entry binds on the live model, whatever of its files is still to be named."""
    trial = [
        line._replace(value="tokenizer.json") if line.path[-1] == "tokenizer" and line.value is None else line
        for line in lines
    ]
    if live.transaction.decoupled and _value(lines, "task") in ("image", "speech", "transcription"):
        trial.append(Line(("transport",), "grpc"))
    if any(line.path == ("out", "audio") and line.value is None for line in lines):
        return True  # once there is a rate; `_speech` has tried one
    try:
        settings = _settings(trial, own)
        TASKS[settings.task]().bind(settings, live)
    except (NotBound, ConfigError):
        return False
    return True


def _settings(lines: list[Line], own: Own) -> Model:
    return config.model(table(lines), own.home)


def _value(lines: list[Line], key: str) -> Any:
    return next((line.value for line in lines if line.path == (key,)), None)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # of a text, a number, a list of texts: the same in TOML


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """The files of a folder and those within it; hidden folders, packages and what may not be read are passed by."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for path in entries:
        if path.is_file():
            yield path
        elif depth and path.is_dir() and not path.name.startswith(".") and path.name not in NOT_OURS:
            yield from _below(path, depth - 1)


def _templated(path: Path) -> bool:
    return '"chat_template"' in path.read_text(errors="replace")
