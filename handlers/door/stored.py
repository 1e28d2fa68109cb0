"""Stored responses: what POST /responses keeps, for the key's workspace, or its pipeline where one is fixed."""

from collections.abc import Collection
from typing import Any

import msgspec

from handlers.door.admission import entry
from handlers.door.errors import InvalidRequest, NotFound
from handlers.door.lifetime import Request
from handlers.door.schemas.responses import Item, OutputItem, Response
from store import records, responses
from store.script import Script

LARGE = 256 << 10
"""Characters from which on a response is written beside the loop: the teller's transactions are short ones."""

_read_items = msgspec.json.Decoder(list[Item]).decode
_read_response = msgspec.json.Decoder(Response).decode


class _Output(msgspec.Struct):
    output: list[OutputItem]


_read_output = msgspec.json.Decoder(_Output).decode


async def keep(request: Request, response: Response, items: list[Item]) -> None:
    """Store a response and the items of its own turn. Raises StoreUnavailable."""
    workspace, pipeline = _scope(request)
    row = records.StoredResponse(
        response.id,
        workspace,
        pipeline,
        response.previous_response_id,
        request.gateway.clock(),
        msgspec.json.encode(items).decode(),
        msgspec.json.encode(response).decode(),
    )
    store, since = request.gateway.store, _since(request)
    if len(row.input) + len(row.body) <= LARGE:
        await store.teller.keep(row, since)
    else:
        await store.run(responses.keep([(row, since)], row.created_at))


async def find(request: Request, id: str) -> tuple[Response, list[Item]]:
    """A stored response and the items of its turn. Raises 404."""
    row = await _ask(request, responses.get(id, *_scope(request), since=_since(request)))
    return _read_response(row.body), _read_items(row.input)


async def forget(request: Request, id: str) -> None:
    """Delete it. Raises 404."""
    await _ask(request, responses.delete(id, *_scope(request), since=_since(request)))


async def conversation(request: Request, id: str) -> list[Item]:
    """All that was said up to and with a stored response. Raises 400 where that is too much, 404."""
    param, limit = "previous_response_id", request.gateway.config.server.max_body
    script = responses.conversation(id, *_scope(request), since=_since(request), limit=limit)
    try:
        turns = await _ask(request, script, param, "previous_response_not_found")
    except ValueError as error:
        raise InvalidRequest(str(error), param=param, code="invalid_value") from error
    return [item for input, body in turns for item in (*_read_items(input), *_read_output(body).output)]


async def outputs(request: Request, ids: Collection[str]) -> dict[str, OutputItem]:
    """What these responses answered, by the ids of the items; of one that is not there, nothing. Raises 400."""
    found: dict[str, OutputItem] = {}
    size, limit = 0, request.gateway.config.server.max_body
    for id in ids:
        try:
            row = await request.gateway.store.run(responses.get(id, *_scope(request), since=_since(request)))
        except records.NotFound:
            continue
        size += len(row.body)
        if size > limit:
            raise InvalidRequest(
                f"The items that are referred to are longer than {limit} characters.",
                param="input",
                code="invalid_value",
            )
        found |= {item.id: item for item in _read_output(row.body).output if item.id is not None}
    return found


async def _ask(request: Request, script: Script[Any], param: str = "id", code: str = "response_not_found") -> Any:
    try:
        return await request.gateway.store.run(script)
    except records.NotFound as error:
        raise NotFound(str(error), param=param, code=code) from error


def _scope(request: Request) -> tuple[str, str | None]:
    """The key's workspace, and the pipeline that the key or the path fixes."""
    assert request.authority is not None, "the endpoint admits first"
    pipeline = entry(request)
    return request.authority.key.workspace, None if pipeline is None else pipeline.id


def _since(request: Request) -> int:
    gateway = request.gateway
    return gateway.clock() - int(gateway.config.responses.retention * 1_000_000)
