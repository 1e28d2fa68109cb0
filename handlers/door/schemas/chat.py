"""Chat completions: the request and the answer, whole and in chunks."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from handlers.door.schemas.body import Body

TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1)]
FunctionKey = Annotated[str, Meta(pattern="^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Body, tag="text", tag_field="type"):
    text: str


class ImageUrl(Body):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Body, tag="image_url", tag_field="type"):
    image_url: ImageUrl


class InputAudio(Body):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Body, tag="input_audio", tag_field="type"):
    input_audio: InputAudio


Part = TextPart | ImagePart | AudioPart
Text = str | list[TextPart]


class FunctionCall(Body):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a function, in an answer and when the conversation tells of it."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class DeveloperMessage(Body, tag="developer", tag_field="role"):
    content: Text
    name: str | None = None


class SystemMessage(Body, tag="system", tag_field="role"):
    content: Text
    name: str | None = None


class UserMessage(Body, tag="user", tag_field="role"):
    content: str | list[Part]
    name: str | None = None


class RefusalPart(Body, tag="refusal", tag_field="type"):
    refusal: str


class AssistantMessage(Body, tag="assistant", tag_field="role"):
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: list[dict[str, Any]] | None = None  # of an answer that is told again, like the three below
    audio: None = None
    function_call: None = None
    provider_specific_fields: dict[str, Any] | None = None  # LiteLLM's own notes on it


class ToolMessage(Body, tag="tool", tag_field="role"):
    content: Text
    tool_call_id: str
    name: str | None = None


Message = DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class TextFormat(Body, tag="text", tag_field="type"):
    pass


class JsonObjectFormat(Body, tag="json_object", tag_field="type"):
    pass


class JsonSchema(Body):
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, tag="json_schema", tag_field="type"):
    json_schema: JsonSchema


class Function(Body):
    name: FunctionKey
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    function: Function
    type: Literal["function"]


class FunctionName(Body):
    name: str


class NamedChoice(Body):
    function: FunctionName
    type: Literal["function"]


class ChatRequest(Body):
    """POST /chat/completions."""

    takes_extra: ClassVar[bool] = True  # a profile may bind fields of its own, as extra.NAME

    messages: Annotated[list[Message], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: TokenCount | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    # Advisory: these do not change an answer.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @staticmethod
    def mend(fields: dict[str, Any]) -> None:
        """What OpenAI's SDKs add to an answer stays in it when it is told again; no model is to see it.

        It is their own reading of its text, `parsed` and `parsed_arguments` of parse() and stream(), and of a stream
        each call's `index`.
        """
        for message in _objects(fields.get("messages")):
            if message.get("role") == "assistant":
                message.pop("parsed", None)
                for call in _objects(message.get("tool_calls")):
                    call.pop("index", None)
                    for function in _objects([call.get("function")]):
                        function.pop("parsed_arguments", None)


def _objects(values: Any) -> Iterator[dict[str, Any]]:
    """Those of a list that are objects: nothing is sure yet."""
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class AnswerMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct):
    content: list[Logprob]
    refusal: None = None


class Choice(msgspec.Struct):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(msgspec.Struct, tag_field="object", tag="chat.completion"):
    """The answer, whole."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None


class ChunkFunction(msgspec.Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class ChunkCall(msgspec.Struct, omit_defaults=True):
    index: int
    function: ChunkFunction
    id: str | None = None
    type: Literal["function"] | None = None


class ChunkDelta(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ChunkCall] | None = None


class ChunkChoice(msgspec.Struct):
    index: int
    delta: ChunkDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class ChatCompletionChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    """One event of a streamed answer."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
