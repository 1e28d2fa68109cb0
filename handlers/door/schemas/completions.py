"""Completions: the request and the answer of the legacy endpoint, whole and in chunks."""

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from handlers.door.errors import InvalidRequest
from handlers.door.schemas.body import Body
from handlers.door.schemas.chat import Penalty, StopText, StreamOptions, TokenCount, Usage

Prompt = Annotated[str, Meta(min_length=1)]


class CompletionRequest(Body):
    """POST /completions."""

    takes_extra: ClassVar[bool] = True

    prompt: Prompt | Annotated[list[Prompt], Meta(min_length=1, max_length=128)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    user: str | None = None  # advisory

    @staticmethod
    def mend(fields: dict[str, Any]) -> None:
        """Raises 400 for token ids, with a sentence that says why."""
        prompt = fields.get("prompt")
        if isinstance(prompt, list) and prompt and all(isinstance(each, int | list) for each in prompt):
            raise InvalidRequest(
                "'prompt' is taken as text, not as token ids: those of another tokenizer would mean something else.",
                param="prompt",
                code="unsupported_parameter",
            )


class CompletionLogprobs(msgspec.Struct):
    """Each list has an entry per token; offsets are in characters, from the beginning of the choice's text."""

    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] | None = None
    text_offset: list[int] = []


class CompletionChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, tag_field="object", tag="text_completion"):
    """The answer, or one event of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
