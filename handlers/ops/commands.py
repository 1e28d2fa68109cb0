"""The command line, `conch VERB`: tables for people and, with --json, JSON for programs."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from config import Config, ConfigError, api_key, load
from handlers.door.admission import judge
from handlers.door.entrance import Lifetime
from handlers.door.errors import ApiError
from handlers.ops.tables import show
from store import open_store
from store.records import StoreError

Build = Callable[[Config], Lifetime]
Serve = Callable[[Config, Callable[[], Config]], None]

TLS = ("ssl_certfile", "ssl_keyfile")
GROUPS = ("verbs", "backup", "copying", "webhooks.verbs")
"""Modules beside this one; `add` of each puts verbs of its own into the parser."""


def run(arguments: Sequence[str], build: Build, serve: Serve) -> int:
    """Parse and obey; returns the exit status."""
    options = _parser(() if arguments[:1] == ["serve"] else GROUPS).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        if options.verb == "version":
            from handlers.ops import version

            return show(options, version.build())
        if options.verb == "init":
            from handlers.ops import init

            return init.run(options)
        read = partial(_load, options)
        config = read()
        logging.getLogger("conch").setLevel(config.server.log_level.upper())
        if options.verb == "serve":
            serve(config, read)
            return 0
        if options.verb == "get":
            from handlers.ops.inside import get

            return asyncio.run(get(build(config), options.path, api_key(), sys.stdout))
        if options.verb == "openapi":
            return _openapi(build(config), config)
        handler: Callable[[argparse.Namespace, Config], int] = options.handler
        return handler(options, config)
    except (ApiError, ConfigError, StoreError, ValueError) as error:
        print(f"conch: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as of `| head`; nothing is to be written when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"conch: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _load(options: argparse.Namespace) -> Config:
    """The settings, and what the command line says over them. Raises ConfigError."""
    config = load(options.config, options.env)
    given = {name: value for name in TLS if (value := getattr(options, name, None)) is not None}
    return replace(config, server=replace(config.server, **given)) if given else config


def _parser(groups: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="conch", description="An OpenAI gateway for Triton Inference Server.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="conch.toml (default: CONCH_CONFIG, else config/conch.toml)")
    common.add_argument("--env", metavar="NAME", help="the [env.NAME] that lies over it (default: CONCH_ENV)")
    common.add_argument("--json", action="store_true", help="print JSON")
    named = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, handler: Callable[[argparse.Namespace, Config], int] | None = None) -> Any:
        added = named.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(handler=handler)
        return added

    serving = verb("serve", "Run the gateway.")
    for name in TLS:
        serving.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=f"[server] {name}, for TLS")
    verb("check", "Bind every configured model against its live server; exit 1 if any does not fit.", _check)
    verb("get", "Answer a GET of PATH as the gateway would, with the key in CONCH_API_KEY.").add_argument(
        "path", metavar="PATH"
    )
    verb("openapi", "Print the OpenAPI document of this configuration.")
    verb(
        "reload", "Have a running gateway read the settings again; exit 1 where they are broken.", _reload
    ).add_argument("pid", metavar="PID", type=int, help="its process id, or that of the workers' parent")
    verb("migrate", "Bring the store's schema up to date.", _migrate)
    verb("version", "Print version, commit and build date.")
    verb("models", "List the configured models.", _models)
    _init(named)
    for group in groups:  # a server starts without them
        import_module(f"handlers.ops.{group}").add(named, common)
    return parser


def _init(named: Any) -> None:
    text = "Write a conch.toml for a Triton: its models, recognised by their tensors."
    verb = named.add_parser("init", help=text, description=text)
    verb.add_argument("url", metavar="URL", help="of its HTTP, such as http://127.0.0.1:8000")
    verb.add_argument("--grpc", metavar="HOST:PORT", help="of its gRPC (default: port 8001, where that answers)")
    verb.add_argument(
        "--files", metavar="DIR", default=".", help="where tokenizers and chat templates lie (default: .)"
    )
    verb.add_argument("--output", metavar="FILE", default="conch.toml", help="default: conch.toml; must not exist yet")


def _check(options: argparse.Namespace, config: Config) -> int:
    from handlers.ops import check

    models = asyncio.run(check.fits(config))
    if options.json:
        show(options, models)
    else:
        print(check.printed(models))
    return 0 if all(model.verified for model in models) else 1


def _openapi(app: Lifetime, config: Config) -> int:
    import msgspec

    from handlers.ops.openapi.document import document

    print(msgspec.json.format(msgspec.json.encode(document(app.gateway.routes(), config)), indent=2).decode())
    return 0


def _reload(options: argparse.Namespace, config: Config) -> int:
    """The settings could be read: else it had ended before."""
    from handlers.ops import tls

    tls.context(config.server)
    command = Path(f"/proc/{options.pid}/cmdline")
    if not command.exists() or b"serve" not in command.read_bytes().split(b"\0"):
        raise ConfigError(f"the process {options.pid} is no gateway that serves; name the main process.")
    os.kill(options.pid, signal.SIGHUP)
    return show(options, {"reloading": options.pid})


def _migrate(options: argparse.Namespace, config: Config) -> int:
    async def go() -> list[int]:
        store = open_store(config.store.url, judge(config.plans))
        try:
            return await store.migrate()
        finally:
            await store.close()

    return show(options, {"applied": asyncio.run(go())})


def _models(options: argparse.Namespace, config: Config) -> int:
    fields = ("id", "task", "aliases", "upstream", "model", "preset", "workspaces")
    return show(options, [{field: getattr(model, field) for field in fields} for model in config.models])
