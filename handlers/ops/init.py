"""`conch init URL`: a commented conch.toml for a Triton, from what that tells of itself and of its models."""

import argparse
import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from config import load
from handlers.ops import check
from handlers.ops.recognition import UPSTREAM, Files, Line, Live, entry, parts, tensor, written
from upstream.errors import UpstreamError
from upstream.http import Client

GRPC_PORT = 8001  # Triton's default
TIMEOUT = 10.0  # seconds for one answer of Triton
HEAD = """\
# Conch's settings for {url}, written by `conch init`. docs/configuration.md lists every setting, docs/profiles.md says
# how a model is bound. `conch check --config {name}` shows whether each fits, `conch serve --config {name}` serves.

[server]
host = "127.0.0.1"  # "0.0.0.0" to be reached from other machines
port = 8080

[store]
url = "sqlite:var/conch.db"  # relative to the working directory; postgresql://… for several machines

[upstreams.{upstream}]
urls = ["{url}"]  # and further servers that hold the same models
"""
UNKNOWN = "Write a [[models]] entry of your own, with task, [models.in] and [models.out]: docs/profiles.md."


class Listed(msgspec.Struct):
    """A line of the repository index."""

    name: str
    state: str = ""
    reason: str = ""


def run(options: argparse.Namespace) -> int:
    """Write the file, and say how its models stand. Raises ValueError, UpstreamError."""
    output = Path(options.output)
    if output.exists():
        raise ValueError(f"{output} is there already: name another --output, or move it away.")
    files = Files(Path(options.files).resolve(), output.resolve().parent)
    text = asyncio.run(_written(options.url, options.grpc, output.name, files))
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"{output} is written. As its models stand now:\n")
    print(check.printed(asyncio.run(check.fits(load(output)))))
    return 0


async def _written(url: str, grpc: str | None, name: str, files: Files) -> str:
    url = url.rstrip("/")
    client = Client(url)
    try:
        listed, models = await _models(client)
    except UpstreamError as error:
        raise ValueError(f"{url} is no Triton that answers: {error}") from error
    finally:
        client.close()
    address = grpc or await _grpc(url)
    head = HEAD.format(url=url, name=name, upstream=UPSTREAM)
    if address is not None:
        head += f'grpc = ["{address}"]  # of each of them\n'
    else:
        head += (
            f"# grpc = […]  # port {GRPC_PORT} does not answer: for models that answer in many pieces, give host:port\n"
        )
    within = parts(models)
    blocks = [head]
    for model, live in models.items():
        lines = None if model in within else entry(live, models, files, grpc=address is not None)
        blocks.append(_unknown(live, within.get(model)) if lines is None else _block(lines))
    blocks += [f"# {each.name} is not loaded{f' ({each.reason})' if each.reason else ''}.\n" for each in listed]
    return "\n".join(blocks)


async def _models(client: Client) -> tuple[list[Listed], dict[str, Live]]:
    """Those that are not ready, and the configurations of those that are. Raises UpstreamError, ValueError."""
    index = await _ask(client, "POST", "/v2/repository/index", list[Listed])
    ready = dict.fromkeys(each.name for each in index if each.state == "READY")
    models = {name: await _ask(client, "GET", f"/v2/models/{quote(name, safe='')}/config", Live) for name in ready}
    rest = {each.name: each for each in index if each.name not in ready}
    return list(rest.values()), models


async def _ask(client: Client, method: str, path: str, kind: Any) -> Any:
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    reply = await client.target(method, path).call(deadline=deadline)
    if reply.status != 200:
        raise ValueError(
            f"{method} {path} of {client.address} answered {reply.status}: is it Triton, with its HTTP on?"
        )
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{method} {path} of {client.address} is not what Triton documents: {error}") from error


async def _grpc(url: str) -> str | None:
    """Triton's usual gRPC port on the same host, if something listens there."""
    host = urlsplit(url).hostname or ""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, GRPC_PORT)
    except (OSError, TimeoutError):
        return None
    writer.close()
    return f"[{host}]:{GRPC_PORT}" if ":" in host else f"{host}:{GRPC_PORT}"


def _block(lines: list[Line]) -> str:
    return "[[models]]\n" + "".join(f"{written(line)}\n" for line in lines)


def _unknown(live: Live, ensemble: str | None) -> str:
    """A model that is not served, as comments."""
    if ensemble is not None:
        return f"# {live.name} is a part of {ensemble}.\n"
    told = [
        f"{live.name} is like no preset. Its tensors:",
        *(f"  in   {tensor(each)}" for each in live.inputs),
        *(f"  out  {tensor(each)}" for each in live.outputs),
        UNKNOWN,
    ]
    return "".join(f"# {line}\n" for line in told)
