"""`conch check`: every configured model bound against its live server, and how well the two fit."""

import msgspec

from config import Config
from upstream.deployment import Deployment
from upstream.pool import Pool


class Stand(msgspec.Struct):
    """How a model stands on one server: verified, or the reason why not; requests of this process under way there."""

    url: str
    verified: bool
    reason: str


class Fit(msgspec.Struct):
    """A model's verification. `bound`: tensors that the profile fills or reads; `unbound`: what the live model has
    besides; `unknown`: what the profile names and the live model lacks."""

    id: str
    task: str
    verified: bool
    reason: str
    bound: list[str]
    unbound: list[str]
    unknown: list[str]
    servers: list[Stand]


async def fits(config: Config) -> list[Fit]:
    """One for each model, in the order of the file."""
    pool = Pool(config.upstreams, config.models)
    try:
        await pool.check()
        return [fit(pool.deployments[model.id]) for model in config.models]
    finally:
        await pool.close()


def printed(models: list[Fit]) -> str:
    """For people: a line per model, and its tensors below."""
    width = max(len(model.id) for model in models) if models else 0
    lines = []
    for model in models:
        lines.append(f"{model.id:{width}}  {model.task:13}  {'verified' if model.verified else 'NOT VERIFIED'}")
        rows = (
            ("why", [model.reason]),
            ("bound", model.bound),
            ("unbound", model.unbound),
            ("unknown", model.unknown),
            (
                "missing",
                [f"{server.url}: {server.reason}" for server in model.servers if model.verified and server.reason],
            ),
        )
        lines += [f"  {name:8} {', '.join(said)}" for name, said in rows if any(said)]
    return "\n".join(lines) or "no models are configured"


def fit(deployment: Deployment) -> Fit:
    """As it stood when it was last looked at."""
    binding = next((replica.binding for replica in deployment.replicas if replica.binding is not None), None)
    bound: list[str] = []
    unbound: list[str] = []
    if binding is not None:
        contract = binding.contract
        live = [tensor.name for tensor in (*contract.inputs, *contract.outputs)]
        settings = deployment.settings
        named = {name for name, entry in settings.inputs.items() if entry is not False}
        for entry in settings.outputs.values():
            named.add(entry if isinstance(entry, str) else entry.tensor)
        bound = [name for name in live if name in named]
        unbound = [name for name in live if name not in named]
    servers = [Stand(replica.server.url, replica.health.may_serve, replica.reason) for replica in deployment.replicas]
    return Fit(
        deployment.id,
        deployment.settings.task,
        deployment.verified,
        deployment.reason,
        bound,
        unbound,
        deployment.left_out,
        servers,
    )
