"""Every error that Conch can answer with: raised where it is known, rendered once, in the one shape."""

import logging
from collections.abc import Collection
from typing import Any

import msgspec

from store.records import StoreUnavailable
from upstream.errors import (
    ContextExceeded,
    DeadlinePassed,
    ModelFailed,
    Unavailable,
    Unsupported,
    UpstreamError,
)

log = logging.getLogger("conch")

# The request's own names for sources that are called otherwise in a profile.
PARAMS = {"json_schema": "response_format", "images": "messages", "wants_logprobs": "logprobs"}


class ApiError(Exception):
    """An answer that is not a success: the status, and the four fields of the body (wire contract, Errors)."""

    status = 500
    type = "api_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The error object, ready to be encoded."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    """400 unless said otherwise: the request itself is wrong."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(ApiError):
    """401: no key, or none that is good."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """403: the key is good and may not do this."""

    status = 403
    type = "permission_denied"


class NotFound(ApiError):
    """404: no such model, pipeline or route."""

    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """404 for a model, or a pipeline of models, that is not there or not for this key."""

    type = "model_not_found"
    code = "model_not_found"


class RateLimited(ApiError):
    """429."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class IdempotencyRefused(ApiError):
    """409: the key is another body's, or its first request is running; 422: its answer was not kept."""

    status = 409

    def __init__(self, message: str, code: str, *, status: int = 409, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        super().__init__(message, code=code, status=status, headers=headers)
        self.type = code


class DeploymentFailed(ApiError):
    """502: Triton answered with an error, or broke off; 503: it has no room, or no such model loaded."""

    status = 502
    type = "deployment_error"
    code = "upstream_error"


class TimedOut(ApiError):
    """504."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


def retry_after(seconds: int) -> tuple[tuple[bytes, bytes], ...]:
    """The header that tells a client when to come again."""
    return ((b"retry-after", str(seconds).encode()),)


STOPPING = ApiError(
    "Conch is being restarted and could not finish this request; try again.",
    status=503,
    code="stopping",
    headers=retry_after(1),
)
OVERDUE = TimedOut(
    "The time that X-Request-Timeout gives this request is over.", headers=((b"x-should-retry", b"false"),)
)
OVERLOADED = ApiError(
    "Conch has as many requests under way as it may; try again.",
    status=503,
    code="overloaded",
    headers=retry_after(1),
)


def encode(error: ApiError) -> bytes:
    """The body of the answer."""
    return msgspec.json.encode(error.body())


def translate(error: Exception, request: str) -> ApiError:
    """Any exception as the answer that a client may see; what it may not see is logged under the request's id."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Unsupported):
        param = PARAMS.get(error.source, error.source.removeprefix("extra."))
        return InvalidRequest(f"Invalid {param!r}: {error}.", param=param, code="unsupported_parameter")
    if isinstance(error, ContextExceeded):
        return InvalidRequest(error.public, param="messages", code="context_length_exceeded")
    if isinstance(error, UpstreamError):
        _tell(error, request)
        if isinstance(error, Unavailable):
            return DeploymentFailed(
                error.public, status=503, code="model_unavailable", headers=retry_after(error.retry_after)
            )
        if isinstance(error, DeadlinePassed):
            return TimedOut(error.public)
        return DeploymentFailed(error.public)
    if isinstance(error, StoreUnavailable):
        log.error("%s: store: %s", request, error)
        return ApiError(
            "The accounts cannot be reached at the moment; try again.",
            status=503,
            code="store_unavailable",
            headers=retry_after(1),
        )
    log.error("%s: a bug", request, exc_info=error)
    return ApiError("Conch failed on this request; the operator's log has the details under its request id.")


def _tell(error: UpstreamError, request: str) -> None:
    """Log it. A model's own words may repeat the prompt: they are only for who asks for level debug."""
    if isinstance(error, ModelFailed | ContextExceeded):
        log.warning("%s: upstream: %s, in %d characters", request, type(error).__name__, len(str(error)))
        log.debug("%s: upstream: %s: %s", request, type(error).__name__, error)
    else:
        log.warning("%s: upstream: %s: %s", request, type(error).__name__, error)


def unrouted(status: int, method: str, path: str, allowed: Collection[str]) -> ApiError:
    """What Starlette's router refuses: an unknown route, or a method that is not `allowed` on a route."""
    if status == 405:
        allow = ", ".join(sorted(allowed))
        return InvalidRequest(
            f"{method} is not allowed here; use {allow}.",
            status=405,
            code="method_not_allowed",
            headers=((b"allow", allow.encode()),),
        )
    return NotFound(f"There is nothing at {method} {path}; see the API's documentation.", code="unknown_route")


def decoding(error: msgspec.MsgspecError | UnicodeDecodeError | RecursionError) -> InvalidRequest:
    """A body that is no JSON, or not of the endpoint's schema: where, and what was expected."""
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("The body is not valid UTF-8; send JSON encoded as UTF-8.", code="invalid_json")
    if isinstance(error, RecursionError):
        return InvalidRequest("The body is nested too deeply.", code="invalid_json")
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidRequest(f"The body is not valid JSON: {text}.", code="invalid_json")
    message, _, path = text.partition(" - at `$")
    param = None if path.startswith("[") else path.rstrip("`").lstrip(".") or None
    if message.startswith("Object contains unknown field"):
        field = message.split("`")[1]
        param = f"{param}.{field}" if param else field
        return InvalidRequest(
            f"Unknown parameter: {param!r}. It is no part of this endpoint, or this deployment does not support it.",
            param=param,
            code="unknown_parameter",
        )
    if message.startswith("Object missing required field"):
        field = message.split("`")[1]
        param = f"{param}.{field}" if param else field
        return InvalidRequest(f"Missing required parameter: {param!r}.", param=param, code="missing_required_parameter")
    where = f"Invalid {param!r}: " if param else "Invalid body: "
    return InvalidRequest(f"{where}{message[0].lower()}{message[1:]}.", param=param, code="invalid_value")
