"""Examples, as the Structs themselves: one that does not fit its schema cannot be written."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec.structs import replace

from handlers.door.billing import InsufficientCredits
from handlers.door.errors import (
    ApiError,
    DeploymentFailed,
    Forbidden,
    IdempotencyRefused,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    TimedOut,
    Unauthenticated,
)
from handlers.door.multipart import Upload
from handlers.door.schemas import audio, chat, completions, embeddings, images, pipeline, rerank, responses
from handlers.ops import admin
from handlers.ops.cards import Page
from handlers.ops.openapi.answers import ANSWERS, CREATED, QUESTION
from handlers.ops.webhooks import admin as webhooks
from handlers.ops.webhooks import events

Named = dict[str, msgspec.Struct]

WEATHER: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FILE = Upload("hello.wav")

# A body's examples, and the task of the model that they name.
REQUESTS: dict[type[msgspec.Struct], tuple[str | None, Named]] = {
    chat.ChatRequest: (
        "chat",
        {
            "whole": chat.ChatRequest([chat.UserMessage(QUESTION)]),
            "streamed": chat.ChatRequest(
                [chat.SystemMessage("Answer briefly."), chat.UserMessage(QUESTION)],
                stream=True,
                stream_options=chat.StreamOptions(include_usage=True),
                max_completion_tokens=64,
                temperature=0.2,
            ),
            "tools": chat.ChatRequest(
                [chat.UserMessage("What is the weather in Paris?")],
                tools=[chat.Tool(chat.Function("get_weather", "The weather in a city", WEATHER), "function")],
            ),
            "schema": chat.ChatRequest(
                [chat.UserMessage("city: Paris")],
                response_format=chat.JsonSchemaFormat(chat.JsonSchema("place", WEATHER)),
            ),
        },
    ),
    completions.CompletionRequest: (
        "chat",
        {"whole": completions.CompletionRequest("Count to 5", max_tokens=30)},
    ),
    responses.ResponseRequest: (
        "chat",
        {
            "text": responses.ResponseRequest(QUESTION, store=False),
            "items": responses.ResponseRequest(
                [responses.Message("user", QUESTION)], instructions="Answer briefly.", stream=True, store=False
            ),
        },
    ),
    embeddings.EmbeddingRequest: (
        "embedding",
        {"texts": embeddings.EmbeddingRequest(["A conch is a shell.", QUESTION], encoding_format="float")},
    ),
    rerank.RerankRequest: (
        "rerank",
        {
            "best": rerank.RerankRequest(
                QUESTION, ["Rice is boiled.", "A conch is a shell."], top_n=1, return_documents=True
            )
        },
    ),
    images.ImageRequest: ("image", {"whole": images.ImageRequest("a red sailboat on the sea", size="256x256")}),
    audio.SpeechRequest: ("speech", {"mp3": audio.SpeechRequest("Good morning.", voice="alloy")}),
    audio.TranscriptionRequest: ("transcription", {"file": audio.TranscriptionRequest(FILE, response_format="json")}),
    audio.TranslationRequest: ("transcription", {"file": audio.TranslationRequest(FILE, response_format="json")}),
    pipeline.PipelineRequest: (
        None,
        {
            "file": pipeline.PipelineRequest(FILE, response_format="wav"),
            "base64": pipeline.PipelineRequest(audio="UklGRg==", stream=True),
        },
    ),
    admin.NewWorkspace: (None, {"on a plan": admin.NewWorkspace("acme", "pro", spend_limit_usd="100")}),
    admin.WorkspaceChange: (None, {"plan": admin.WorkspaceChange(plan="team")}),
    admin.Grant: (None, {"credits": admin.Grant("25", "invoice 42")}),
    admin.KeyRequest: (None, {"for 90 days": admin.KeyRequest("acme", "website", expires="90d")}),
    admin.Rotation: (None, {"a day": admin.Rotation("24h")}),
    webhooks.WebhookRequest: (
        None,
        {
            "of the gateway": webhooks.WebhookRequest("https://example.com/conch"),
            "of a workspace": webhooks.WebhookRequest("https://example.com/acme", ["credits.low"], "acme"),
        },
    ),
    webhooks.WebhookChange: (None, {"disabled": webhooks.WebhookChange(enabled=False)}),
}
EVENTS: tuple[events.Event, ...] = (
    events.CreditsLowEvent("evt_4f6d8a", CREATED, data=events.CreditsLow("acme", "4.98", "5.00", None)),
    events.KeyExpiringEvent(
        "evt_4f6d8a",
        CREATED,
        data=events.KeyExpiring("acme", "key_4f6d8a", "website", "rp_live_3f9a", CREATED + 604_800),
    ),
    events.DeploymentDownEvent("evt_4f6d8a", CREATED, data=events.DeploymentDown("assistant", "Triton is away.")),
    events.DeploymentUpEvent("evt_4f6d8a", CREATED, data=events.DeploymentUp("assistant")),
    events.TestEvent("evt_4f6d8a", CREATED, data=events.Test("wh_4f6d8a")),
)
ERRORS: tuple[ApiError, ...] = (
    InvalidRequest("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter"),
    InvalidRequest(
        "The model 'assistant' does not support 'logit_bias'; leave it out.",
        param="logit_bias",
        code="unsupported_parameter",
    ),
    Unauthenticated("No API key was sent. Send a key as 'Authorization: Bearer rp_live_…'."),
    InsufficientCredits(120_000_000, 250_000_000, "https://example.com/credits"),
    Forbidden(
        "This key is bound to the pipeline 'support'; use its path, or a key of the workspace.",
        code="pipeline_scope_mismatch",
    ),
    ModelNotFound(
        "The model 'llama' does not exist or is not available to this key; GET /v1/models lists what is available.",
        param="model",
    ),
    InvalidRequest("The body did not arrive in time.", status=408, code="request_timeout"),
    IdempotencyRefused(
        "This Idempotency-Key was used with another body; send a new key with a new request.",
        "idempotency_conflict",
        headers=(),
    ),
    IdempotencyRefused(
        "The first request with this Idempotency-Key is still running; try again in 1 s.",
        "idempotency_in_progress",
        headers=(),
    ),
    InvalidRequest("The body is too large; the limit is 16777216 bytes.", status=413, code="body_too_large"),
    InvalidRequest(
        "The body must be JSON: send 'Content-Type: application/json'.", status=415, code="unsupported_media_type"
    ),
    IdempotencyRefused(
        "The answer to the first request with this Idempotency-Key was too large to be kept; it ran and was charged"
        " once. Send a new key to run it again.",
        "idempotency_replay_unavailable",
        status=422,
        headers=(),
    ),
    RateLimited("The rate limit of this key, 500 requests per minute, is reached; try again in 3 s."),
    ApiError("Conch failed on this request; the operator's log has the details under its request id."),
    DeploymentFailed("The model failed on this request."),
    DeploymentFailed("The model is being loaded; try again in 30 s.", status=503, code="model_unavailable"),
    TimedOut("The model did not answer in time."),
)


def requests(body: type[msgspec.Struct], models: dict[str, str]) -> dict[str, Any]:
    """The examples of a body, with the id of a model that is there, by `models` of a task."""
    task, named = REQUESTS.get(body, (None, {}))
    model = models.get(task) if task is not None else None
    return {
        name: {"value": _plain(each if model is None else replace(each, model=model))} for name, each in named.items()
    }


def answer(kind: Any) -> dict[str, Any]:
    """An example of an answer, where there is one."""
    found = _shown(kind)
    return {} if found is None else {"example": _plain(found)}


def event(kind: Any) -> dict[str, Any]:
    """An example of a server-sent event, where there is one."""
    found = _shown(kind)
    return {} if found is None else {"example": {"data": msgspec.json.encode(found).decode()}}


def _shown(kind: Any) -> msgspec.Struct | None:
    if get_origin(kind) is Page:
        return Page([ANSWERS[get_args(kind)[0]]], False, None)
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next((ANSWERS[each] for each in members if each in ANSWERS), None)


def errors(status: int) -> dict[str, Any]:
    """Those of one status, by their codes."""
    return {str(error.code or error.type): {"value": error.body()} for error in ERRORS if error.status == status}


def _plain(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value, enc_hook=lambda file: f"({file.filename})")
