"""The settings: conch.toml, the [env.NAME] over it, CONCH_ variables over both, and the Structs they become."""

import os
import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from config import sections
from config.faults import faults
from config.sections import (
    MOST_PER_MINUTE,
    NANO,
    PLANS,
    Chat,
    Config,
    Credits,
    Embedding,
    Idempotency,
    Image,
    Input,
    Metrics,
    Model,
    Output,
    Pipeline,
    Plan,
    Price,
    Responses,
    Server,
    Speech,
    Store,
    Task,
    Tracing,
    Transcription,
    Upstream,
    Voice,
    Webhooks,
)
from config.variables import settings_of

__all__ = [
    "MOST_PER_MINUTE",
    "NANO",
    "PLANS",
    "Chat",
    "Config",
    "ConfigError",
    "Credits",
    "Embedding",
    "Idempotency",
    "Image",
    "Input",
    "Metrics",
    "Model",
    "Output",
    "Pipeline",
    "Plan",
    "Price",
    "Responses",
    "Server",
    "Speech",
    "Store",
    "Task",
    "Tracing",
    "Transcription",
    "Upstream",
    "Voice",
    "Webhooks",
    "activated",
    "admin_token",
    "api_key",
    "load",
    "model",
    "presets",
]

HERE = Path(__file__).parent
DEFAULT_PATH = HERE / "conch.toml"
PRESETS = HERE / "presets"
BUILD = HERE / "build.json"  # version, commit and date; in the binary only
TRANSPORTS: dict[str, tuple[str, ...]] = {
    "chat": ("generate", "grpc"),
    "image": ("infer", "grpc"),
    "speech": ("infer", "grpc"),
    "transcription": ("infer", "grpc"),
}
WAYS = frozenset({"from", "const", "json", "template"})  # to fill a tensor
FILES = (  # that a [[models]] entry names
    ("chat", "template"),
    ("embedding", "tokenizer"),
    ("rerank", "tokenizer"),
    ("speech", "voices", "*", "wav"),
)


class ConfigError(ValueError):
    """A setting that cannot be used: one sentence that says where it stands and what to write instead."""


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
    try:
        settings = _over(settings, settings_of(variables, Config.__struct_fields__))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for setting in ("ssl_certfile", "ssl_keyfile"):
        settings = _placed(settings, ("server", setting), file.resolve().parent)
    settings = _over({"plans": msgspec.to_builtins(PLANS)}, settings)
    if _are_tables(models := settings.get("models")):
        settings["models"] = [_complete(model, file) for model in models]
    try:
        config = msgspec.convert(settings, Config, strict=False, dec_hook=sections.read)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}.") from error
    for fault in faults(config):
        raise ConfigError(f"{file}: {fault}")
    return config


def model(entry: Mapping[str, Any], folder: Path) -> Model:
    """One [[models]] entry as `load` would make of it in a file that lies in `folder`. Raises ConfigError."""
    file = folder / "conch.toml"
    try:
        return msgspec.convert(_complete(dict(entry), file), Model, strict=False, dec_hook=sections.read)
    except msgspec.ValidationError as error:
        raise ConfigError(f"model {entry.get('id')!r}: {error}.") from error


def presets() -> list[str]:
    """The names that `preset` may have."""
    return sorted(entry.stem for entry in PRESETS.glob("*.toml"))


def activated(variables: MutableMapping[str, str] | None = None) -> list[tuple[int, str]]:
    """The sockets that systemd has handed over to this process, by number and name; told once, and not to children."""
    variables = os.environ if variables is None else variables
    pid, count = variables.pop("LISTEN_PID", ""), variables.pop("LISTEN_FDS", "")
    names = variables.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [(3 + number, names[number] if number < len(names) else "") for number in range(int(count))]


def api_key(variables: Mapping[str, str] | None = None) -> str | None:
    """CONCH_API_KEY, the key that `conch get` asks with."""
    return (os.environ if variables is None else variables).get("CONCH_API_KEY")


def admin_token(variables: Mapping[str, str] | None = None) -> str | None:
    """CONCH_ADMIN_TOKEN, which opens /admin; None when it is not set, or empty."""
    return (os.environ if variables is None else variables).get("CONCH_ADMIN_TOKEN", "").strip() or None


def metrics_token(variables: Mapping[str, str] | None = None) -> str | None:
    """CONCH_METRICS_TOKEN, which opens /metrics and nothing else; None when it is not set, or empty."""
    return (os.environ if variables is None else variables).get("CONCH_METRICS_TOKEN", "").strip() or None


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


def _complete(model: dict[str, Any], file: Path) -> dict[str, Any]:
    """A [[models]] entry over its preset; the files that it names are taken from where `file` lies."""
    for path in FILES:
        model = _placed(model, path, file.resolve().parent)
    model = _over(_preset(model, file), model)
    task, transport = model.get("task"), model.get("transport")
    usable = TRANSPORTS.get(str(task))
    if usable and transport is not None and transport not in usable:
        raise ConfigError(
            f"{file}: model {model.get('id')!r}: transport {transport!r} is not for {task}; use {' or '.join(usable)}."
        )
    return model


def _preset(model: dict[str, Any], file: Path) -> dict[str, Any]:
    name = model.get("preset")
    if name is None:
        return {}
    preset = PRESETS / f"{name}.toml"
    if not preset.is_file():
        known = ", ".join(presets())
        raise ConfigError(f"{file}: model {model.get('id')!r}: there is no preset {name!r}; there are: {known}.")
    return tomllib.loads(preset.read_text(encoding="utf-8"))


def _placed(table: Any, path: tuple[str, ...], folder: Path) -> Any:
    """`table` with the file name at `path` taken from `folder`; * stands for every key."""
    if not path:
        return str(folder / table) if isinstance(table, str) else table
    if not isinstance(table, dict):
        return table
    key, *rest = path
    return {name: _placed(value, tuple(rest), folder) if key in ("*", name) else value for name, value in table.items()}
