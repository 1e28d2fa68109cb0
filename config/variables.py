"""CONCH_SECTION__KEY variables as a tree of settings; every other CONCH_ name is somebody else's."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

log = logging.getLogger("conch")

SECRETS = frozenset({"CONCH_ADMIN_TOKEN", "CONCH_METRICS_TOKEN", "CONCH_API_KEY"})  # read where they are used
# Kubernetes gives every pod these for a Service named conch or conch-server.
_INJECTED = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)")


def settings_of(variables: Mapping[str, str], sections: Collection[str]) -> dict[str, Any]:
    """The tree; a value that opens with [ or { is JSON, urls may be separated by commas.

    A name of one of `sections` without its `__` is ignored with a warning. Raises ValueError with a sentence.
    """
    tree: dict[str, Any] = {}
    for name, text in variables.items():
        if not name.startswith("CONCH_"):
            continue
        path = name.removeprefix("CONCH_").lower().split("__")
        if len(path) < 2:
            if name not in SECRETS:
                _warn(name, path[0].partition("_"), sections)
            continue
        value = _value(name, path[-1], text)
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise ValueError(f"{name}: another variable sets {part!r} as a whole; unset one of the two.")
        branch[path[-1]] = value
        if path[0] == "upstreams" and path[-1] == "urls":
            branch.setdefault("grpc", [])  # those of the file belong to the urls that these replace
    return tree


def _value(name: str, key: str, text: str) -> Any:
    if text[:1] in ("[", "{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ValueError(f"{name}: not valid JSON: {error}.") from error
    return [url.strip() for url in text.split(",")] if key in ("urls", "grpc") else text


def _warn(name: str, parts: tuple[str, str, str], sections: Collection[str]) -> None:
    section, _, rest = parts
    if rest and section in sections and not _INJECTED.fullmatch(name):
        log.warning("%s is ignored: settings are named CONCH_SECTION__KEY, as in CONCH_SERVER__PORT", name)
