"""GET /models and /models/{id}: the verified deployments that a key may use."""

from handlers.door.admission import entry, may_see, unknown_model
from handlers.door.lifetime import Request
from handlers.door.schemas.models import ModelCard, ModelList
from upstream.deployment import Deployment


async def index(request: Request) -> ModelList:
    """The verified models of the key's workspace; of its pipeline, where the key or the path fixes one. Raises 404."""
    pipeline = entry(request)
    wanted = None if pipeline is None else set(pipeline.models.values())

    def keep(deployment: Deployment) -> bool:
        return (wanted is None or deployment.id in wanted) and may_see(request, deployment.id)

    return ModelList([_card(request, deployment) for deployment in await request.gateway.pool.settled(keep)])


async def show(request: Request) -> ModelCard:
    """One model, by its id or an alias. Raises 404."""
    name = request.path_params["id"]
    named = request.gateway.pool.by_name.get(name)
    for card in (await index(request)).data:
        if named is not None and card.id == named.id:
            return card
    raise unknown_model(name)


def _card(request: Request, deployment: Deployment) -> ModelCard:
    gateway = request.gateway
    return ModelCard(deployment.id, gateway.started, gateway.models[deployment.id].owned_by)
