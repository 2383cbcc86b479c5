"""``GET /v1/models``: what can be asked for."""

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cdm_serve.api.errors import ApiError, documented
from cdm_serve.api.schema import Decoder
from cdm_serve.backend import Backend, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.settings import Settings


class BatchesEntry(BaseModel):
    """What a picture's company may change in it, as measured at start."""

    policy: Literal["exact", "close"]
    largest_difference: float = Field(description="of what is computed, as a part of the largest")
    psnr: float | None = Field(description="the least, in decibels; null where nothing differs")
    dropped: list[str] = Field(description="batch sizes that are not used, each with the reason")


class ModelEntry(BaseModel):
    """OpenAI's model object, and what the card says beside it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "cdm-serve"
    architecture: str
    fingerprint: str
    sizes: list[str]
    default_size: str
    multiple: int = Field(description="of which the sides of other sizes are; 0: no other sizes")
    longest_side: int | None = Field(description="of other sizes, in pixels")
    max_pixels: int = Field(description="of other sizes; 0: no other sizes")
    default_steps: int
    max_steps: int
    decoders: list[Decoder] = Field(description="tiny also makes all previews")
    default_decoder: Decoder = Field(description="where a request names none")
    edits: bool = Field(description="whether it takes pictures, at /v1/images/edits")
    needs_picture: bool = Field(description="whether it makes none of a prompt alone")
    verified: str = Field(description="how far the export was compared: full, quick or none")
    batches: BatchesEntry


class ModelList(BaseModel):
    """All served models; the first is the default."""

    object: str = "list"
    data: list[ModelEntry]


def find_model(
    name: str | None, models: dict[str, ModelCard], aliases: dict[str, str]
) -> ModelCard:
    """The named model, or the one that the name stands for (``*``: any), or the first.

    Raises:
        ApiError: no such model.
        BackendLost: nothing is loaded yet.
    """
    if not models:
        raise BackendLost("the model is being loaded")
    if name is None:
        return next(iter(models.values()))
    model = name if name in models else aliases.get(name, aliases.get("*"))
    if model not in models:
        stands = f", which stands for {model!r}," if model else ""
        raise ApiError(
            f"model: {name[:80]!r}{stands} is not served here, only {', '.join(models)}; "
            "cdm-serve --alias NAME=MODEL gives a model a further name",
            status=404,
            param="model",
            code="model_not_found",
        )
    return models[model]


def usual_decoder(model: ModelCard, settings: Settings) -> Decoder:
    """What makes the pixels where a request does not say it."""
    return settings.decoder if settings.decoder in model.decoders else "full"


def models_router(backend: Backend, created: int, settings: Settings) -> APIRouter:
    """The two routes; ``created`` is the time at which the server started."""
    router = APIRouter()

    def entry(card: ModelCard) -> ModelEntry:
        most = settings.max_pixels or 0 if card.multiple else 0
        usual = usual_decoder(card, settings)
        return ModelEntry(created=created, max_pixels=most, default_decoder=usual, **asdict(card))

    @router.get("/v1/models", responses=documented(401))
    async def models() -> ModelList:
        """All served models; the first is the default."""
        return ModelList(data=[entry(card) for card in backend.models.values()])

    @router.get("/v1/models/{model}", responses=documented(401, 404, 503))
    async def model(model: str) -> ModelEntry:
        """One served model."""
        return entry(find_model(model, backend.models, settings.alias))

    return router
