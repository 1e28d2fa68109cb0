"""The events, as receivers read them. None has a secret, a prompt or an answer in it.

Times are whole unix seconds; money is a decimal of dollars, exact.
"""

from typing import Literal

import msgspec

from config import Config
from handlers.ops.values import usd
from store.alerts import Describe, Found, Low
from store.records import Key

Type = Literal["credits.low", "key.expiring", "deployment.down", "deployment.up"]
OF_WORKSPACE: tuple[Type, ...] = ("credits.low", "key.expiring")
EVERY: tuple[Type, ...] = (*OF_WORKSPACE, "deployment.down", "deployment.up")
SECOND = 1_000_000  # µs


class CreditsLow(msgspec.Struct):
    """A workspace has less than its threshold left; told once until a grant lifts it over that."""

    workspace: str
    credits_usd: str
    threshold_usd: str
    topup_url: str | None


class KeyExpiring(msgspec.Struct):
    """A key ends soon, and has no successor; told once."""

    workspace: str
    id: str
    name: str
    prefix: str
    expires_at: int


class DeploymentDown(msgspec.Struct):
    """No process of the gateway has the model any more, for a `reason`."""

    id: str
    reason: str


class DeploymentUp(msgspec.Struct):
    """One of them has it again."""

    id: str


class Test(msgspec.Struct):
    """Somebody wants to know whether you hear us."""

    webhook: str


class _Event(msgspec.Struct, frozen=True, tag_field="type"):
    """`id` is the same however often it is sent."""

    id: str
    created_at: int
    object: Literal["event"] = "event"


class CreditsLowEvent(_Event, kw_only=True, frozen=True, tag="credits.low"):
    """Credits run low."""

    data: CreditsLow


class KeyExpiringEvent(_Event, kw_only=True, frozen=True, tag="key.expiring"):
    """A key ends soon."""

    data: KeyExpiring


class DeploymentDownEvent(_Event, kw_only=True, frozen=True, tag="deployment.down"):
    """A model is gone."""

    data: DeploymentDown


class DeploymentUpEvent(_Event, kw_only=True, frozen=True, tag="deployment.up"):
    """A model is back."""

    data: DeploymentUp


class TestEvent(_Event, kw_only=True, frozen=True, tag="webhook.test"):
    """A test, sent by hand."""

    data: Test


Event = CreditsLowEvent | KeyExpiringEvent | DeploymentDownEvent | DeploymentUpEvent | TestEvent


def written(event: Event) -> tuple[str, str]:
    """The type and the body of an event."""
    return str(event.__struct_config__.tag), msgspec.json.encode(event).decode()


def describe(config: Config) -> Describe:
    """How what is found becomes an event, with these settings."""

    def told(id: str, now: int, found: Found) -> tuple[str, str]:
        at = now // SECOND
        if isinstance(found, Low):
            low = CreditsLow(found.workspace, usd(found.balance), usd(found.threshold), config.credits.topup_url)
            return written(CreditsLowEvent(id, at, data=low))
        if isinstance(found, Key):
            assert found.expires_at is not None, "only such a key is found"
            key = KeyExpiring(found.workspace, found.id, found.name, found.prefix, found.expires_at // SECOND)
            return written(KeyExpiringEvent(id, at, data=key))
        if found.up:
            return written(DeploymentUpEvent(id, at, data=DeploymentUp(found.deployment)))
        return written(DeploymentDownEvent(id, at, data=DeploymentDown(found.deployment, found.reason)))

    return told
