"""``GET /v1/models``: what can be asked for."""

from typing import Any

from fastapi import APIRouter

from cdm_serve.api.plan import find_model
from cdm_serve.triton.models import ModelCard
from cdm_serve.triton.supervisor import Supervisor


def models_router(supervisor: Supervisor, created: int) -> APIRouter:
    """The two routes; ``created`` is the time at which the server started."""
    router = APIRouter()

    def entry(card: ModelCard) -> dict[str, Any]:
        return {
            "id": card.id,
            "object": "model",
            "created": created,
            "owned_by": "cdm-serve",
            "architecture": card.architecture,
            "fingerprint": card.fingerprint,
            "sizes": list(card.sizes),
            "default_size": card.default_size,
            "default_steps": card.default_steps,
            "max_steps": card.max_steps,
        }

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """All served models; the first is the default."""
        return {"object": "list", "data": [entry(card) for card in supervisor.models.values()]}

    @router.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        """One served model."""
        return entry(find_model(model, supervisor.models))

    return router
