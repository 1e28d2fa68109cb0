"""How every deployment stands in this process: its servers, what is under way, what waits, what was lost and loaded."""

import msgspec

from upstream.deployment import Deployment
from upstream.replica import Replica


class ServerCard(msgspec.Struct):
    """A model on one server. `state`: serving, trial (one request at a time tries it), ejected or unverified, the last
    two for a `reason`. `outstanding` requests are under way; since the start there were so many `requests` and, of
    these, `errors` of the server's, and it was left out `ejections` times."""

    url: str
    state: str
    reason: str
    outstanding: int
    requests: int
    errors: int
    ejections: int


class DeploymentCard(msgspec.Struct):
    """A model. `state`: serving, cold (loaded for who asks), loading, unloading or unavailable, for a `reason`.

    `queued` requests wait. Since the start `refused` found the queue full, `retries` went to another server and
    `cold_starts` waited for the model; Triton was asked for so many `loads`, of which `failed_loads`, and `unloads`.
    """

    id: str
    task: str
    state: str
    reason: str
    outstanding: int
    queued: int
    max_inflight: int | None
    max_queue: int | None
    refused: int
    retries: int
    cold_starts: int
    loads: int
    failed_loads: int
    unloads: int
    servers: list[ServerCard]


def deployment_card(deployment: Deployment) -> DeploymentCard:
    """As it stands now."""
    settings, loader, queue = deployment.settings, deployment.loader, deployment.queue
    return DeploymentCard(
        deployment.id,
        settings.task,
        deployment.state,
        deployment.reason,
        sum(replica.outstanding for replica in deployment.replicas),
        len(queue.waiting),
        settings.max_inflight,
        queue.most if settings.max_inflight is not None else None,
        queue.refused,
        deployment.retries,
        loader.cold if loader else 0,
        loader.loads if loader else 0,
        loader.failed_loads if loader else 0,
        loader.unloads if loader else 0,
        [_server_card(replica) for replica in deployment.replicas],
    )


def _server_card(replica: Replica) -> ServerCard:
    health = replica.health
    return ServerCard(
        replica.server.url,
        health.state,
        replica.reason,
        replica.outstanding,
        replica.requests,
        replica.errors,
        health.ejections,
    )
