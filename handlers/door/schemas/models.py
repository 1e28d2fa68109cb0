"""Models and health: what the listings answer."""

import msgspec


class ModelCard(msgspec.Struct, tag_field="object", tag="model"):
    """A deployment, as GET /models shows it."""

    id: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    data: list[ModelCard]


class Health(msgspec.Struct):
    """`status` is "ok", or the reason why not."""

    status: str
