"""``GET /v1/models``: what can be asked for."""

from fastapi import APIRouter
from pydantic import BaseModel

from cdm_serve.api.errors import documented
from cdm_serve.api.plan import find_model
from cdm_serve.backend import Backend
from cdm_serve.engine.card import ModelCard


class ModelEntry(BaseModel):
    """OpenAI's model object, and what this server knows of it."""

    id: str
    object: str
    created: int
    owned_by: str
    architecture: str
    fingerprint: str
    sizes: list[str]
    default_size: str
    default_steps: int
    max_steps: int


class ModelList(BaseModel):
    """All served models; the first is the default."""

    object: str
    data: list[ModelEntry]


def models_router(backend: Backend, created: int) -> APIRouter:
    """The two routes; ``created`` is the time at which the server started."""
    router = APIRouter()

    def entry(card: ModelCard) -> ModelEntry:
        return ModelEntry(
            id=card.id,
            object="model",
            created=created,
            owned_by="cdm-serve",
            architecture=card.architecture,
            fingerprint=card.fingerprint,
            sizes=list(card.sizes),
            default_size=card.default_size,
            default_steps=card.default_steps,
            max_steps=card.max_steps,
        )

    @router.get("/v1/models", responses=documented(401))
    async def models() -> ModelList:
        """All served models; the first is the default."""
        entries = [entry(card) for card in backend.models.values()]
        return ModelList(object="list", data=entries)

    @router.get("/v1/models/{model}", responses=documented(401, 404, 503))
    async def model(model: str) -> ModelEntry:
        """One served model."""
        return entry(find_model(model, backend.models))

    return router
