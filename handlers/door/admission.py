"""Who may pass: key, plan and one token before the body is read; then which deployment the request may reach."""

import asyncio
import hashlib
import re
from collections.abc import Mapping

from config import Pipeline, Plan, Task
from handlers.door.deadline import heed
from handlers.door.errors import (
    ApiError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    Unauthenticated,
    retry_after,
)
from handlers.door.gateway import Gateway
from handlers.door.lifetime import Request
from store.buckets import Judge
from store.records import Authority, Budget, Key, StoreUnavailable, Take
from upstream.deployment import Deployment
from upstream.trace import ASKED

BEARER = re.compile(rb"(?i:bearer) +(rp_live_[0-9a-f]{64})")
CHALLENGE = ((b"www-authenticate", b"Bearer"),)
DEFAULT = "default"


def judge(plans: Mapping[str, Plan]) -> Judge:
    """The rule of the take: what a key may use at a moment, or None when it may do nothing."""

    def rule(authority: Authority, now: int) -> Budget | None:
        key, workspace = authority.key, authority.workspace
        plan = plans.get(workspace.plan)
        if plan is None or not plan.keys or key.revoked_at is not None:
            return None
        if key.expires_at is not None and key.expires_at <= now:
            return None
        ceiling = workspace.ceiling or plan.ceiling
        per_minute = min(key.limit or plan.default, ceiling)
        if per_minute < 1:
            return None
        return Budget(per_minute, min(plan.burst or per_minute, per_minute), plan.concurrency)

    return rule


async def admit(request: Request) -> None:
    """Find the key, let the plan judge it, take one token. Raises 401, 403, 429 or StoreUnavailable."""
    header = request.header(b"authorization")
    match = BEARER.fullmatch(header) if header is not None else None
    if match is None:
        raise _unauthenticated(header is not None)
    gateway, digest = request.gateway, hashlib.sha256(match[1]).digest()
    taking = gateway.store.teller.take(digest)
    try:
        take = await taking
    except asyncio.CancelledError:
        if taking.done() and not taking.cancelled():
            _leave_after(request, taking.result())
        raise
    except StoreUnavailable:
        if gateway.recent is None or not gateway.recent.admit(request, digest):
            raise
        return
    request.take = take
    if take.budget is None and gateway.recent is not None:
        gateway.recent.forget(digest)
    if not take.granted:
        raise _refusal(take, gateway.clock())
    request.authority = take.authority
    _leave_after(request, take)
    if gateway.recent is not None and request.authority is not None:
        gateway.recent.note(digest, request.authority)


def _leave_after(request: Request, take: Take) -> None:
    """Give the place of a plan with a concurrency back at the end."""
    if take.granted and take.budget is not None and take.budget.concurrency is not None:
        assert take.authority is not None
        request.place = take.authority.workspace.name
        request.on_end(request.vacate)


def _unauthenticated(given: bool) -> ApiError:
    how = "Send a key as 'Authorization: Bearer rp_live_…'"
    what = "The API key is not valid; check it, or make a new one." if given else "No API key was sent."
    return Unauthenticated(f"{what} {how}.", headers=CHALLENGE)


def _refusal(take: Take, now: int) -> ApiError:
    authority = take.authority
    if authority is None or authority.key.revoked_at is not None:
        return _unauthenticated(True)
    if take.crowded and take.budget is not None:
        return RateLimited(
            f"{take.budget.concurrency} requests of this workspace are running, as many as its plan allows;"
            " try again when one has ended.",
            code="concurrency_limit_exceeded",
            headers=retry_after(1),
        )
    if take.budget is not None:
        limit = take.budget.per_minute
        return RateLimited(
            f"The rate limit of this key, {limit} requests per minute, is reached; try again in {take.retry_after} s.",
            headers=retry_after(take.retry_after),
        )
    if authority.key.expires_at is not None and authority.key.expires_at <= now:
        return Unauthenticated("The API key has expired; make a new one.", code="expired_api_key", headers=CHALLENGE)
    return Forbidden(
        f"The plan of this workspace, {authority.workspace.plan!r}, does not include API keys; upgrade it.",
        code="plan_required",
    )


async def reach(request: Request, model: str | None, task: Task) -> Deployment:
    """The deployment that a request means by its `model`, its path and its key. Raises 400, 403, 404 or 503."""
    gateway = request.gateway
    pipeline = entry(request)
    if pipeline is not None:
        name = _piped(pipeline, model, task, gateway)
    elif model is None:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    else:
        name = model
    deployment = gateway.pool.by_name.get(name)
    if deployment is None or not may_see(request, deployment.id):
        raise unknown_model(name)
    request.model = deployment.id
    settings = gateway.models[deployment.id]
    if settings.task != task:
        raise InvalidRequest(
            f"The model {name!r} is for {settings.task}, not for {task}; GET /v1/models lists what is available.",
            param="model",
            code="model_not_supported",
        )
    heed(request)
    request.asked = []
    ASKED.set(request.asked)
    if not deployment.verified:
        await deployment.wake()
    return deployment


def entry(request: Request) -> Pipeline | None:
    """The pipeline that the key or the path fixes, if any. Raises 403 or 404."""
    key = _key(request)
    id = request.path_params.get("pipeline")
    if id is None and key.pipeline is None:
        return None
    if key.pipeline is not None and id not in (None, key.pipeline):
        raise _mismatch(f"This key is bound to the pipeline {key.pipeline!r}; use its path, or a key of the workspace.")
    pipeline = request.gateway.pipelines.get(id or key.pipeline or "")
    if pipeline is None or pipeline.workspace != key.workspace:
        raise ModelNotFound(
            f"There is no pipeline {id or key.pipeline!r} in this workspace.",
            param="pipeline",
            code="pipeline_not_found",
        )
    return pipeline


def may_see(request: Request, id: str) -> bool:
    """Whether the model of this id is visible to the key's workspace and on the key's own list, if it has one."""
    key = _key(request)
    model = request.gateway.models[id]
    if "*" not in model.workspaces and key.workspace not in model.workspaces:
        return False
    return key.models is None or id in key.models


def unknown_model(name: str) -> ModelNotFound:
    """404 for a model that is not there, or not for this key."""
    return ModelNotFound(
        f"The model {name[:200]!r} does not exist or is not available to this key;"
        " GET /v1/models lists what is available.",
        param="model",
        code="model_not_found",
    )


def _piped(pipeline: Pipeline, model: str | None, task: Task, gateway: Gateway) -> str:
    id = pipeline.models.get(task)
    if id is None:
        raise ModelNotFound(
            f"The pipeline {pipeline.id!r} has no model for {task}.", param="model", code="model_not_found"
        )
    named = gateway.pool.by_name.get(model) if model not in (None, DEFAULT) else None
    if model not in (None, DEFAULT) and (named is None or named.id != id):
        raise _mismatch(
            f"The pipeline {pipeline.id!r} serves {id!r}, not {model!r}; leave model out, or say 'default'."
        )
    return id


def _mismatch(message: str) -> Forbidden:
    return Forbidden(message, code="pipeline_scope_mismatch")


def _key(request: Request) -> Key:
    assert request.authority is not None, "the endpoint admits before it reaches"
    return request.authority.key
