"""POST /responses: items in, items out, whole or as events; those that are stored, by GET and DELETE."""

import time
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from typing import Literal

from msgspec.structs import replace

from handlers.door import stored
from handlers.door.admission import reach
from handlers.door.conversation import converse
from handlers.door.errors import ApiError, InvalidRequest
from handlers.door.lifetime import Request
from handlers.door.reply import finish, interpreted, logprobs, opened, usage
from handlers.door.schemas import chat
from handlers.door.schemas.response_events import (
    Completed,
    Created,
    Event,
    Failed,
    Incomplete,
    InProgress,
    ResponseEvent,
)
from handlers.door.schemas.responses import (
    Deleted,
    FlatSchemaFormat,
    FunctionChoice,
    FunctionTool,
    IncompleteDetails,
    InputDetails,
    Item,
    ItemList,
    ItemsQuery,
    ReasoningField,
    Response,
    ResponseError,
    ResponseRequest,
    ResponseUsage,
    StoredQuery,
    TextField,
)
from handlers.door.wire import Stream, event
from handlers.responses_items import Conversation, own_items, response_id
from handlers.responses_output import Output
from upstream.answer import Answer
from upstream.deployment import Deployment
from upstream.inference import Delta, TokenLogprob, Usage
from upstream.interpreter import Interpreter, Piece, Text

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (LOGPROBS, "message.input_image.image_url")  # the second is always there
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}  # by finish reason


async def create(request: Request, body: ResponseRequest) -> Response | Stream[ResponseEvent]:
    """Answer a conversation, and keep both unless `store` is false."""
    _refuse(body)
    deployment = await reach(request, body.model, "chat")
    items = await own_items(request, body)
    conversation = Conversation()
    formatted_by = "response_format" if body.response_format is not None else "text.format"
    request.renamed = lambda error: conversation.renamed(error, formatted_by)
    if body.instructions is not None:
        conversation.instruct(body.instructions)
    if body.previous_response_id is not None:
        conversation.add(await stored.conversation(request, body.previous_response_id), "previous_response_id")
    conversation.add(items)
    generation, interpret = await converse(request, _as_chat(body, conversation.messages), deployment)
    run = _Run(request, _response(body, deployment), items, interpret() if interpret is not None else None)
    started = time.perf_counter()
    answer = await opened(request, deployment, generation)
    if body.stream:
        request.error_frames = run.fail
        return Stream(_frames(request, answer, started, run), lambda: run.pending)
    while deltas := await answer.read():
        for delta in deltas:
            run.take(delta)
    request.upstream_seconds = time.perf_counter() - started
    await run.end(answer.usage)
    return run.response


async def show(request: Request, query: StoredQuery) -> Response:
    """A stored response. Raises 404."""
    _check_include(query.include)
    if query.stream:
        raise _not_built("stream")
    response, _ = await stored.find(request, request.path_params["id"])
    return response


async def delete(request: Request) -> Deleted:
    """Forget a stored response. Raises 404."""
    id = request.path_params["id"]
    await stored.forget(request, id)
    return Deleted(id)


async def input_items(request: Request, query: ItemsQuery) -> ItemList:
    """The items of a stored response's own turn, page by page. Raises 404."""
    _check_include(query.include)
    _, items = await stored.find(request, request.path_params["id"])
    if query.order == "desc":
        items.reverse()
    ids = [item.id for item in items]
    if query.after is not None:
        if query.after not in ids:
            raise InvalidRequest(f"There is no item {query.after!r} here.", param="after", code="invalid_value")
        items = items[len(ids) - ids[::-1].index(query.after) :]  # a client may have used an id twice
    page = items[: query.limit]
    ends = (page[0].id, page[-1].id) if page else (None, None)
    return ItemList(page, *ends, len(page) < len(items))


class _Run:
    """One response from its first delta to its end: the object, its items, the frames that are still to be sent."""

    def __init__(
        self, request: Request, response: Response, items: list[Item], interpreter: Interpreter | None
    ) -> None:
        self.response = response
        self.pending = b""
        self._request = request
        self._items = items
        self._interpreter = interpreter
        self._output = Output(response.id)
        self._finish = "stop"
        self._probable: list[TokenLogprob] = []  # of tokens whose words are still held back

    def begin(self) -> None:
        """Tell of what comes before the first word."""
        number = self._output.number
        self.tell([Created(number(), self.response), InProgress(number(), self.response)])

    def tell(self, events: Sequence[Event]) -> None:
        """Make the frames of these events."""
        self.pending += b"".join(map(event, events))

    def take(self, delta: Delta) -> list[Event]:
        """The events of a delta."""
        interpreter = self._interpreter
        if interpreter is None:
            pieces: list[Piece] = [Text(delta.text)] if delta.text else []
            self._finish = delta.finish or self._finish
        else:
            pieces = interpreted(interpreter, delta)
            self._finish = finish(interpreter, delta) or self._finish
        self._probable += delta.logprobs or ()
        events: list[Event] = []
        for piece in pieces:
            told = logprobs(self._probable) if isinstance(piece, Text) else []
            self._probable = []
            events += self._output.add(piece, told)
        return events

    async def end(self, usage: Usage) -> None:
        """Finish the response, store it, and only then tell of it."""
        reason = INCOMPLETE.get(self._finish)
        status: Literal["completed", "incomplete"] = "completed" if reason is None else "incomplete"
        self.tell(self._output.finish(status))
        self.response = replace(
            self.response,
            status=status,
            incomplete_details=None if reason is None else IncompleteDetails(reason),
            completed_at=int(time.time()) if reason is None else None,
            output=self._output.items,
            usage=_usage(usage),
        )
        if self.response.store:
            await stored.keep(self._request, self.response, self._items)
        ending = Completed if reason is None else Incomplete
        self.tell([ending(self._output.number(), self.response)])

    async def fail(self, error: ApiError) -> bytes:
        """The last frames of a stream that broke off, or whose client waits no longer: then the run goes on. Such
        a response is not stored."""
        output = deepcopy(self._output)
        ended = output.end("incomplete")
        code = "server_error" if error.status >= 500 else "invalid_prompt"
        failed = replace(
            self.response,
            status="failed",
            output=output.items,
            error=ResponseError(code, error.message),
            store=False,
        )
        return self.pending + b"".join(map(event, [*ended, Failed(output.number(), failed)]))


async def _frames(request: Request, answer: Answer, started: float, run: _Run) -> AsyncIterator[bytes]:
    """The frames of the events, those of one arrival as one piece; the last ones are left pending."""
    run.begin()
    while deltas := await answer.read():
        request.upstream_seconds = time.perf_counter() - started
        for delta in deltas:
            run.tell(run.take(delta))
        if run.pending:  # half a tag may be all that came
            frames, run.pending = run.pending, b""
            yield frames
    await run.end(answer.usage)


def _refuse(body: ResponseRequest) -> None:
    """What is not built, and the rules that join two fields. Raises 400."""
    for field in ("background", "conversation", "max_tool_calls", "prompt"):
        if getattr(body, field) not in (None, False):
            raise _not_built(field)
    if body.truncation == "auto":
        raise _not_built("truncation")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise _not_built("text.verbosity")
    if body.reasoning is not None and body.reasoning.summary not in (None, "auto"):
        raise _not_built("reasoning.summary")
    _check_include(body.include)
    rules = (
        (
            body.stream_options is not None and not body.stream,
            "stream_options",
            "'stream_options' is only allowed with 'stream': true.",
        ),
        (
            bool(body.top_logprobs) and LOGPROBS not in (body.include or ()),
            "top_logprobs",
            f"'top_logprobs' needs {LOGPROBS!r} in 'include'.",
        ),
        (
            body.response_format is not None and body.text is not None and body.text.format is not None,
            "response_format",
            "Send 'text.format' or 'response_format', not both.",
        ),
    )
    for broken, param, message in rules:
        if broken:
            raise InvalidRequest(message, param=param, code="invalid_value")


def _check_include(include: list[str] | None) -> None:
    for place, name in enumerate(include or ()):
        if name not in INCLUDABLE:
            raise InvalidRequest(
                f"{name!r} cannot be included; there are: {', '.join(INCLUDABLE)}.",
                param=f"include[{place}]",
                code="unsupported_parameter",
            )


def _not_built(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param!r} is not built for what it asks here; leave it out.", param=param, code="unsupported_parameter"
    )


def _as_chat(body: ResponseRequest, messages: list[chat.Message]) -> chat.ChatRequest:
    """The request as chat would make it: what lies below is the same."""
    told = LOGPROBS in (body.include or ())
    choice = body.tool_choice
    form = _format(body)
    return chat.ChatRequest(
        messages,
        stream=body.stream,
        max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logprobs=told or None,
        top_logprobs=body.top_logprobs if told else None,
        response_format=(
            chat.JsonSchemaFormat(chat.JsonSchema(form.name, form.schema, form.description, form.strict))
            if isinstance(form, FlatSchemaFormat)
            else form
        ),
        tools=[_chat_tool(tool) for tool in body.tools or ()],
        tool_choice=(
            chat.NamedChoice(chat.FunctionName(choice.name), "function")
            if isinstance(choice, FunctionChoice)
            else choice
        ),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        seed=body.seed,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def _format(body: ResponseRequest) -> chat.TextFormat | chat.JsonObjectFormat | FlatSchemaFormat:
    """The form of the answer, whichever of the two fields asks for it."""
    form = body.response_format
    if isinstance(form, chat.JsonSchemaFormat):
        given = form.json_schema
        return FlatSchemaFormat(given.name, given.schema or {}, given.description, given.strict)
    return (body.text.format if body.text is not None else None) or form or chat.TextFormat()


def _chat_tool(tool: FunctionTool) -> chat.Tool:
    return chat.Tool(chat.Function(tool.name, tool.description, tool.parameters, tool.strict), "function")


def _response(body: ResponseRequest, deployment: Deployment) -> Response:
    """The response object before its first word."""
    return Response(
        id=response_id(),
        created_at=int(time.time()),
        model=deployment.id,
        previous_response_id=body.previous_response_id,
        instructions=body.instructions,
        tools=body.tools or [],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        text=TextField(_format(body)),
        top_p=1.0 if body.top_p is None else body.top_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        top_logprobs=body.top_logprobs or 0,
        temperature=1.0 if body.temperature is None else body.temperature,
        reasoning=ReasoningField(body.reasoning.effort if body.reasoning is not None else None),
        max_output_tokens=body.max_output_tokens,
        store=body.store is not False,
        metadata=body.metadata or {},
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
    )


def _usage(counted: Usage) -> ResponseUsage | None:
    told = usage(counted)
    if told is None:
        return None
    details = InputDetails(counted.cached_tokens or 0)
    return ResponseUsage(told.prompt_tokens, told.completion_tokens, told.total_tokens, details)
