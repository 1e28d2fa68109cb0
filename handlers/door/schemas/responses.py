"""Responses: the request, the items of a conversation, the response object."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from handlers.door.errors import InvalidRequest
from handlers.door.schemas.body import Body
from handlers.door.schemas.chat import (
    FunctionKey,
    JsonObjectFormat,
    JsonSchemaFormat,
    Logprob,
    Penalty,
    TextFormat,
    TokenCount,
)

Status = Literal["in_progress", "completed", "incomplete"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class Tagged(msgspec.Struct, forbid_unknown_fields=True, tag_field="type"):
    """What clients send and get alike; in an answer every field is there."""

    type_left_out: ClassVar[bool] = False  # clients may leave it out: nothing else is like it there


class Entry(Tagged):
    """An item of a conversation: clients may send null for what it may lack."""

    null_leaves_out: ClassVar[bool] = True


class InputText(Tagged, tag="input_text"):
    text: str


class InputImage(Tagged, tag="input_image"):
    image_url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class OutputText(Tagged, tag="output_text"):
    text: str
    annotations: list[dict[str, Any]] = []
    logprobs: list[Logprob] | None = []


class Refusal(Tagged, tag="refusal"):
    refusal: str


class SummaryText(Tagged, tag="summary_text"):
    type_left_out: ClassVar[bool] = True

    text: str


class ReasoningText(Tagged, tag="reasoning_text"):
    type_left_out: ClassVar[bool] = True

    text: str


MessagePart = InputText | InputImage | OutputText | Refusal
InputPart = InputText | InputImage


class Message(Entry, tag="message"):
    """What was said, by whom."""

    type_left_out: ClassVar[bool] = True

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[MessagePart]
    id: str | None = None
    status: Status = "completed"
    phase: Literal["commentary", "final_answer"] | UnsetType = UNSET


class FunctionCall(Entry, tag="function_call"):
    """The model asks for a function; `call_id` joins it to its output."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status = "completed"


class FunctionCallOutput(Entry, tag="function_call_output"):
    """What the function gave."""

    call_id: str
    output: str | list[InputPart]
    id: str | None = None
    status: Status = "completed"


class Reasoning(Entry, tag="reasoning"):
    """What the model thought."""

    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    id: str | None = None
    status: Status = "completed"
    encrypted_content: str | UnsetType = UNSET


class ItemReference(Entry, tag="item_reference"):
    id: str


Item = Message | FunctionCall | FunctionCallOutput | Reasoning
OutputItem = Message | FunctionCall | Reasoning


class FunctionTool(Tagged, tag="function"):
    type_left_out: ClassVar[bool] = True

    name: FunctionKey
    parameters: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class FunctionChoice(Tagged, tag="function"):
    name: str


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice


class FlatSchemaFormat(Tagged, tag="json_schema"):
    """Chat's json_schema, without its inner object."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextSettings(Body):
    format: TextFormat | JsonObjectFormat | FlatSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningSettings(Body):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponseRequest(Body):
    """POST /responses."""

    takes_extra: ClassVar[bool] = True

    input: (
        Annotated[str, Meta(min_length=1)] | Annotated[list[Item | ItemReference], Meta(min_length=1, max_length=2048)]
    )
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[str] | None = None
    text: TextSettings | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningSettings | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Not built: refused by name, unless they ask for nothing.
    background: bool | None = None
    conversation: Any = None
    max_tool_calls: int | None = None
    prompt: Any = None
    # Advisory: these do not change an answer.
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @staticmethod
    def mend(fields: dict[str, Any]) -> None:
        """What may be left out of an item: a message's type, and null for what it does not have. Hosted tools: 400.

        And what OpenAI's SDKs leave in one that is told again: their own reading of it, as in chat.
        """
        tools, items = fields.get("tools"), fields.get("input")
        for place, tool in enumerate(tools if isinstance(tools, list) else ()):
            if isinstance(tool, dict) and isinstance(kind := tool.get("type"), str) and kind != "function":
                raise InvalidRequest(
                    f"There are no tools of type {kind!r} here; of the tools only functions are built.",
                    param=f"tools[{place}].type",
                    code="unsupported_parameter",
                )
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict):
                for name in [name for name, value in item.items() if value is None and name != "type"]:
                    del item[name]
                item.pop("parsed_arguments", None)
                if "role" in item:
                    item.setdefault("type", "message")
                    for part in item["content"] if isinstance(item.get("content"), list) else ():
                        if isinstance(part, dict):
                            part.pop("parsed", None)


class IncompleteDetails(msgspec.Struct):
    reason: str


class ResponseError(msgspec.Struct):
    code: str
    message: str


class TextField(msgspec.Struct):
    format: TextFormat | JsonObjectFormat | FlatSchemaFormat


class ReasoningField(msgspec.Struct):
    effort: str | None
    summary: None = None


class InputDetails(msgspec.Struct):
    """Required by the SDKs; models behind Triton do not tell of their caches."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct):
    """Required by the SDKs; no tensor counts reasoning apart."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails = field(default_factory=InputDetails)
    output_tokens_details: OutputDetails = field(default_factory=OutputDetails)


class Response(msgspec.Struct, tag_field="object", tag="response", kw_only=True):
    """The response object: the 31 keys of the Open Responses schema."""

    id: str
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    incomplete_details: IncompleteDetails | None = None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[OutputItem] = []
    error: ResponseError | None = None
    tools: list[FunctionTool]
    tool_choice: ToolChoice
    truncation: Literal["disabled"] = "disabled"
    parallel_tool_calls: bool
    text: TextField
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: ReasoningField
    usage: ResponseUsage | None = None
    max_output_tokens: int | None
    max_tool_calls: None = None
    store: bool
    background: Literal[False] = False
    service_tier: str = "default"
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None


class Deleted(msgspec.Struct, tag_field="object", tag="response"):
    """The answer to DELETE /responses/{id}."""

    id: str
    deleted: Literal[True] = True


class StoredQuery(Body):
    """GET /responses/{id}."""

    include: list[str] | None = None
    stream: bool | None = None
    starting_after: int | None = None
    include_obfuscation: bool | None = None


class ItemsQuery(Body):
    """GET /responses/{id}/input_items."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    include: list[str] | None = None


class ItemList(msgspec.Struct, tag_field="object", tag="list"):
    """A page of items."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
