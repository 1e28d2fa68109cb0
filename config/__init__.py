"""The settings: conch.toml, the [env.NAME] over it, CONCH_ variables over both, and the Structs they become."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

import msgspec

HERE = Path(__file__).parent
DEFAULT_PATH = HERE / "conch.toml"
PRESETS = HERE / "presets"
RESERVED_VARIABLES = frozenset({"CONCH_ENV", "CONCH_CONFIG", "CONCH_ADMIN_TOKEN", "CONCH_API_KEY"})
RESERVED_SEGMENTS = frozenset(
    {"models", "chat", "completions", "responses", "embeddings", "images", "audio", "rerank", "metrics", "admin"}
)
WAYS = frozenset({"from", "const", "json", "template"})  # to fill a tensor
FILES = (  # that a [[models]] entry names
    ("chat", "template"),
    ("embedding", "tokenizer"),
    ("rerank", "tokenizer"),
    ("speech", "voices", "*", "wav"),
)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class ConfigError(ValueError):
    """A setting that cannot be used: one sentence that says where it stands and what to write instead."""


class Duration(float):
    """Seconds; written as "250ms", "30s", "5m", "24h", "7d"."""


class Size(int):
    """Bytes; written as "512B", "64KiB", "16MiB", "1GiB"."""


Positive = Annotated[int, msgspec.Meta(ge=1)]
Task = Literal["chat", "embedding", "rerank", "image", "speech", "transcription"]
Name = Annotated[str, msgspec.Meta(min_length=1)]
PipelineId = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9_-]{2,63}$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of conch.toml: an unknown key is an error, since a misspelt setting must not pass for one."""


class Server(Section, frozen=True):
    """[server]: where Conch listens and what it takes from a connection."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    max_body: Size = Size(16 << 20)
    max_upload: Size = Size(256 << 20)
    max_header: Size = Size(64 << 10)
    header_timeout: Duration = Duration(10)
    body_timeout: Duration = Duration(30)
    keep_alive: Duration = Duration(75)
    drain: Duration = Duration(30)
    public_url: str | None = None  # "https://api.example.com", where a proxy hides scheme or host from Conch


class Store(Section, frozen=True):
    """[store]: the ledger. A relative SQLite path is taken from the working directory."""

    url: str = "sqlite:var/conch.db"
    max_files: Size = Size(256 << 20)  # of pictures that are kept an hour for their URLs


class Plan(Section, frozen=True):
    """[plans.NAME]: requests per minute of a key that asks for none, and the most that one may ask for."""

    default: Annotated[int, msgspec.Meta(ge=0)] = 0
    ceiling: Annotated[int, msgspec.Meta(ge=0)] = 0
    burst: Positive | None = None
    keys: bool = True


PLANS: dict[str, Plan] = {
    "starter": Plan(keys=False),
    "pro": Plan(default=500, ceiling=1_000),
    "team": Plan(default=5_000, ceiling=10_000),
    "enterprise": Plan(default=50_000, ceiling=100_000),
}


class Upstream(Section, frozen=True):
    """[upstreams.NAME]: the Triton servers that hold the same models."""

    urls: Annotated[list[str], msgspec.Meta(min_length=1)]
    grpc: list[str] = []  # host:port of each of them, in the same order
    connect_timeout: Duration = Duration(5)
    check_every: Duration = Duration(5)


class Input(Section, frozen=True):
    """A tensor of [models.in]: exactly one of from, const, json or template says what goes in."""

    source: str | None = msgspec.field(name="from", default=None)
    const: bool | int | float | str | None = None
    default: bool | int | float | str | None = None
    map: dict[str, str | int | float | bool] | None = None
    scale: float | None = None
    json: dict[str, "str | Input"] | None = None
    template: str | None = None
    param: bool = False

    def __post_init__(self) -> None:
        ways = (self.source, self.const, self.json, self.template)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("Expected exactly one of `from`, `const`, `json`, `template`")


class Output(Section, frozen=True):
    """A meaning of [models.out]: the tensor that carries it and how to read that."""

    tensor: str
    mode: Literal["delta", "cumulative", "total"] | None = None
    trim_stop: bool = False
    unset: list[str] = []
    layout: Literal["NHWC", "NCHW", "HWC", "CHW"] = "NHWC"
    range: Literal[1, 255] = 255
    encoding: Literal["raw", "png", "base64", "json"] = "raw"
    rate: Positive | None = None
    overlap: Duration = Duration(0)


class Chat(Section, frozen=True):
    """[models.chat]: how a conversation becomes a prompt, and what a text may hold besides words."""

    template: str | None = None
    tools: Literal["none", "hermes", "llama3_json", "mistral", "pythonic", "deepseek", "qwen3_coder", "harmony"] = (
        "none"
    )
    reasoning: Literal["none", "think"] = "none"


class Embedding(Section, frozen=True):
    """[models.embedding] and [models.rerank]: how texts become token ids, and what becomes of the vectors."""

    tokenizer: str | None = None  # tokenizer.json, for models that take token ids
    max_tokens: Positive = 512  # longer inputs are refused, or cut where truncate says so
    truncate: bool = False
    pooling: Literal["none", "mean", "cls", "last"] = "none"
    normalize: bool = False
    prefix: str = ""
    matryoshka: bool = False  # the first n dimensions are a vector of their own
    accepts_token_ids: bool = False


class Image(Section, frozen=True):
    """[models.image]: what the model draws; a size is "512x512", or a range "256x256..1024x1024/8" (in steps of 8)."""

    sizes: list[str] = []  # empty: the model has one size of its own
    max_n: Positive = 4
    max_steps: Positive = 200
    max_guidance: Annotated[float, msgspec.Meta(ge=0)] = 30.0


class Voice(Section, frozen=True):
    """[models.speech.voices.NAME]: the model's own name for a voice, or a recording to imitate."""

    name: str | None = None
    wav: str | None = None
    text: str | None = None


class Speech(Section, frozen=True):
    """[models.speech]: the voices by the names that clients use."""

    voices: dict[str, Voice] = {}
    default_voice: str | None = None
    rate: Positive = 24_000  # of voice.wav, in Hz: what the model wants a recording in
    longest: Duration = Duration(30)  # that a recording may be


class Transcription(Section, frozen=True):
    """[models.transcription]: how long sound is cut for the model."""

    rate: Positive = 16_000
    window: Duration = Duration(30)
    overlap: Duration = Duration(2)
    languages: list[str] = []  # empty: not limited
    default_language: str | None = None
    translates: bool = False


class Model(Section, frozen=True):
    """[[models]]: an id of the API bound to a model of a Triton repository."""

    id: Name
    task: Task
    upstream: Name
    model: Name
    version: str = ""
    aliases: list[Name] = []
    preset: str | None = None
    transport: Literal["generate", "infer", "grpc"] = "generate"
    timeout: Duration = Duration(300)
    max_output: Positive | None = None
    workspaces: list[Name] = msgspec.field(default_factory=lambda: ["*"])
    owned_by: str = "conch"
    chat: Chat = Chat()
    embedding: Embedding = Embedding()
    rerank: Embedding = Embedding()
    image: Image = Image()
    speech: Speech = Speech()
    transcription: Transcription = Transcription()
    inputs: dict[str, str | Input | Literal[False]] = msgspec.field(name="in", default_factory=dict)
    outputs: dict[str, str | Output] = msgspec.field(name="out", default_factory=dict)


class Pipeline(Section, frozen=True):
    """[[pipelines]]: a fixed entry for pipeline-scoped keys and /v1/{pipelineId}/… paths."""

    id: PipelineId
    workspace: Name
    models: dict[Task, Name]


class Config(Section, frozen=True):
    """conch.toml, whole."""

    server: Server = Server()
    store: Store = Store()
    plans: dict[str, Plan] = {}
    upstreams: dict[str, Upstream] = {}
    models: list[Model] = []
    pipelines: list[Pipeline] = []


def load(path: str | Path | None = None, env: str | None = None, variables: Mapping[str, str] | None = None) -> Config:
    """Read `path` (default: CONCH_CONFIG, else config/conch.toml) with [env.NAME] and CONCH_ variables over it.

    Raises ConfigError, whose sentence names the file, the setting and the mend.
    """
    variables = os.environ if variables is None else variables
    file = Path(path or variables.get("CONCH_CONFIG") or DEFAULT_PATH)
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); name the file with --config.") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}.") from error
    environments = settings.pop("env", {})
    name = env or variables.get("CONCH_ENV")
    if name:
        if not isinstance(environments, dict) or not isinstance(environments.get(name), dict):
            known = ", ".join(sorted(environments)) or "none"
            raise ConfigError(f"{file}: there is no [env.{name}]; the file has: {known}.")
        settings = _over(settings, environments[name])
    settings = _over(settings, _from_variables(variables))
    if _are_tables(models := settings.get("models")):
        settings["models"] = [_complete(model, file) for model in models]
    try:
        config = msgspec.convert(settings, Config, strict=False, dec_hook=_read)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}.") from error
    config = msgspec.structs.replace(config, plans={**PLANS, **config.plans})
    _check(config, file)
    return config


def api_key(variables: Mapping[str, str] | None = None) -> str | None:
    """CONCH_API_KEY, the key that `conch get` asks with."""
    return (os.environ if variables is None else variables).get("CONCH_API_KEY")


def _over(under: dict[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` laid over `under`: tables merge, [[models]] and [[pipelines]] by id; everything else is replaced.

    A tensor that is filled in another way than below (const over from) is replaced whole too.
    """
    merged = dict(under)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not WAYS & (value.keys() - below.keys()):
            merged[key] = _over(dict(below), value)
        elif key in ("models", "pipelines") and _are_tables(value) and _are_tables(below):
            by_id = {entry.get("id"): entry for entry in below}
            for entry in value:
                by_id[entry.get("id")] = _over(by_id.get(entry.get("id"), {}), entry)
            merged[key] = list(by_id.values())
        else:
            merged[key] = value
    return merged


def _are_tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _from_variables(variables: Mapping[str, str]) -> dict[str, Any]:
    """CONCH_SECTION__KEY=value as a tree; a value that opens with [ or { is JSON, urls may be separated by commas."""
    tree: dict[str, Any] = {}
    for name, text in variables.items():
        if not name.startswith("CONCH_") or name in RESERVED_VARIABLES:
            continue
        path = name.removeprefix("CONCH_").lower().split("__")
        if len(path) < 2:
            raise ConfigError(f"{name}: not a setting; write CONCH_SECTION__KEY, for example CONCH_SERVER__PORT.")
        value: Any = text
        if text[:1] in ("[", "{"):
            try:
                value = msgspec.json.decode(text)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{name}: not valid JSON: {error}.") from error
        elif path[-1] in ("urls", "grpc"):
            value = [url.strip() for url in text.split(",")]
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"{name}: another variable sets {part!r} as a whole; unset one of the two.")
        branch[path[-1]] = value
        if path[0] == "upstreams" and path[-1] == "urls":
            branch.setdefault("grpc", [])  # those of the file belong to the urls that these replace
    return tree


def _complete(model: dict[str, Any], file: Path) -> dict[str, Any]:
    """A [[models]] entry over its preset; the files that it names are taken from where `file` lies."""
    for path in FILES:
        model = _placed(model, path, file.resolve().parent)
    name = model.get("preset")
    if name is None:
        return model
    preset = PRESETS / f"{name}.toml"
    if not preset.is_file():
        known = ", ".join(sorted(entry.stem for entry in PRESETS.glob("*.toml")))
        raise ConfigError(f"{file}: model {model.get('id')!r}: there is no preset {name!r}; there are: {known}.")
    return _over(tomllib.loads(preset.read_text(encoding="utf-8")), model)


def _placed(table: Any, path: tuple[str, ...], folder: Path) -> Any:
    """`table` with the file name at `path` taken from `folder`; * stands for every key."""
    if not path:
        return str(folder / table) if isinstance(table, str) else table
    if not isinstance(table, dict):
        return table
    key, *rest = path
    return {name: _placed(value, tuple(rest), folder) if key in ("*", name) else value for name, value in table.items()}


def _read(kind: type, value: Any) -> Any:
    """msgspec's hook for Duration and Size."""
    forms: dict[type, tuple[re.Pattern[str], Mapping[str, float], str]] = {
        Duration: (_DURATION, _SECONDS, '"30s"'),
        Size: (_SIZE, _BYTES, '"16MiB"'),
    }
    pattern, units, example = forms[kind]
    match = pattern.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"Expected a text such as {example}, got {value!r}")
    return kind(float(match[1]) * units[match[2]])


def _check(config: Config, file: Path) -> None:
    """What the types cannot say: names that point at something, ids that are unique."""
    for name, upstream in config.upstreams.items():
        if upstream.grpc and len(upstream.grpc) != len(upstream.urls):
            raise ConfigError(f"{file}: [upstreams.{name}] grpc: give one address for each of urls, in their order.")
    for name, plan in config.plans.items():
        if plan.default > plan.ceiling:
            raise ConfigError(f"{file}: plan {name!r}: default {plan.default} is over its ceiling {plan.ceiling}.")
    _check_models(config, file)


def _check_models(config: Config, file: Path) -> None:
    names: dict[str, str] = {}
    for model in config.models:
        if model.upstream not in config.upstreams:
            raise ConfigError(f"{file}: model {model.id!r}: there is no [upstreams.{model.upstream}].")
        for name in (model.id, *model.aliases):
            if name in names or name == "default":
                raise ConfigError(
                    f"{file}: model {model.id!r}: the name {name!r} is taken; every id and alias is used once."
                )
            names[name] = model.id
    by_id = {model.id: model for model in config.models}
    seen: set[str] = set()
    for pipeline in config.pipelines:
        if pipeline.id in RESERVED_SEGMENTS or pipeline.id in seen:
            raise ConfigError(
                f"{file}: pipeline {pipeline.id!r}: the id is a route's or another pipeline's; choose another."
            )
        seen.add(pipeline.id)
        for task, id in pipeline.models.items():
            if id not in by_id or by_id[id].task != task:
                raise ConfigError(f"{file}: pipeline {pipeline.id!r}: {task} = {id!r} is no {task} model's id.")
