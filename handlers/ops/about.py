"""GET /admin/about: what the dashboard has to know of this gateway before it shows anything."""

import msgspec

from config import Config, Task
from handlers.door.gateway import VERSION
from handlers.door.lifetime import Request


class Served(msgspec.Struct):
    """A configured model. `voices`: by the names that clients use; `workspaces`: who sees it, "*" for all."""

    id: str
    task: str
    workspaces: list[str]
    voices: list[str]


class Piped(msgspec.Struct):
    """A pipeline, which keys may be bound to."""

    id: str
    workspace: str
    models: dict[Task, str]


class About(msgspec.Struct):
    """`api_url`: where clients reach the API, if that is another address than the one asked here."""

    version: str
    api_url: str | None
    models: list[Served]
    pipelines: list[Piped]


async def about(request: Request) -> About:
    """Of the configuration."""
    config: Config = request.gateway.config
    public = config.server.public_url
    return About(
        VERSION,
        None if public is None else f"{public.rstrip('/')}/v1",
        [Served(each.id, each.task, list(each.workspaces), list(each.speech.voices)) for each in config.models],
        [Piped(each.id, each.workspace, each.models) for each in config.pipelines],
    )
