"""From a request to exactly what is made, against the model that makes it."""

import secrets
import time
from dataclasses import dataclass

from cdm_serve.api.encode import OutputFormat
from cdm_serve.api.errors import ApiError
from cdm_serve.api.schema import QUALITY_STEPS, ImageRequest
from cdm_serve.backend import BackendLost
from cdm_serve.engine.card import ModelCard

RAW_TYPES: dict[str, OutputFormat] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}
STEPS_QUALITY = {1: "low", 2: "medium", 4: "high", 8: "xhigh", 16: "max"}


@dataclass(frozen=True)
class Plan:
    """``seeds`` has one entry a picture.

    ``raw``: answer with the picture itself, not JSON; ``link``: with its address; ``stream``: with
    events, among them up to ``partials`` previews a picture. ``deadline`` is in unix seconds.
    """

    model: ModelCard
    prompt: str
    seeds: tuple[int, ...]
    steps: int
    size: str
    output_format: OutputFormat
    compression: int
    raw: bool
    link: bool
    stream: bool
    partials: int
    deadline: float | None

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.size.split("x")[0])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.size.split("x")[1])

    @property
    def quality(self) -> str:
        """OpenAI's word for the number of steps, ``auto`` where it has none."""
        return STEPS_QUALITY.get(self.steps, "auto")


def make_plan(
    request: ImageRequest,
    accept: str,
    models: dict[str, ModelCard],
    prompt_limit: int,
    allowed: float | None = None,
) -> Plan:
    """Fill in every default; ``allowed`` is how many seconds there are, from now.

    Raises:
        ApiError: a value that this model or this server does not serve.
    """
    if len(request.prompt) > prompt_limit:
        raise ApiError(
            f"prompt: has {len(request.prompt)} characters, at most {prompt_limit} are possible",
            param="prompt",
            code="string_above_max_length",
        )
    model = find_model(request.model, models)
    count = 1 if request.n is None else request.n
    raw_format = _raw_format(accept)
    _check_form(request, count, raw=raw_format is not None)
    output_format = _output_format(request, raw_format)
    first = secrets.randbits(32) if request.seed is None else request.seed
    return Plan(
        model=model,
        prompt=request.prompt,
        seeds=tuple(range(first, first + count)),
        steps=_steps(request, model),
        size=_size(request.size, model),
        output_format=output_format,
        compression=_compression(request, output_format),
        raw=raw_format is not None,
        link=request.response_format == "url",
        stream=bool(request.stream),
        partials=request.partial_images or 0,
        deadline=None if allowed is None else time.time() + allowed,
    )


def _check_form(request: ImageRequest, count: int, *, raw: bool) -> None:
    """Refuse forms of an answer that contradict each other."""
    if raw and count > 1:
        raise ApiError("n: only 1 picture fits an image answer; accept application/json", param="n")
    if raw and request.stream:
        raise ApiError(
            "stream: contradicts the Accept header, which asks for the picture itself",
            param="stream",
        )
    if request.response_format == "url" and (raw or request.stream):
        form = "the Accept header, which asks for the picture itself" if raw else "stream"
        raise ApiError(f"response_format: url contradicts {form}", param="response_format")
    if request.partial_images and not request.stream:
        raise ApiError("partial_images: only with stream true", param="partial_images")


def find_model(name: str | None, models: dict[str, ModelCard]) -> ModelCard:
    """The named model, or the first.

    Raises:
        ApiError: no such model.
        BackendLost: nothing is loaded yet.
    """
    if not models:
        raise BackendLost("the model is being loaded")
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise ApiError(
            f"model: {name!r} is not served here, only {', '.join(models)}",
            status=404,
            param="model",
            code="model_not_found",
        )
    return models[name]


def _steps(request: ImageRequest, model: ModelCard) -> int:
    by_quality = QUALITY_STEPS.get(request.quality or "auto")
    steps = request.num_inference_steps or by_quality or model.default_steps
    if by_quality not in (None, steps):
        raise ApiError(
            f"num_inference_steps: {steps} contradicts quality {request.quality}, which is "
            f"{by_quality}: give one of them",
            param="num_inference_steps",
        )
    if steps > model.max_steps:
        param = "quality" if request.num_inference_steps is None else "num_inference_steps"
        raise ApiError(
            f"{param}: {steps} steps are too many, {model.id} goes up to {model.max_steps}",
            param=param,
        )
    return steps


def _size(size: str | None, model: ModelCard) -> str:
    if size in (None, "auto"):
        return model.default_size
    if size not in model.sizes:
        raise ApiError(
            f"size: {size!r} is not served by {model.id}, only {', '.join(model.sizes)}",
            param="size",
            code="invalid_value",
        )
    return size


def _raw_format(accept: str) -> OutputFormat | None:
    """The picture format of the Accept header when that stands before any JSON."""
    for part in accept.lower().split(","):
        media = part.partition(";")[0].strip()
        if media in RAW_TYPES:
            return RAW_TYPES[media]
        if media in ("application/json", "application/*", "*/*"):
            return None
    return None


def _output_format(request: ImageRequest, raw_format: OutputFormat | None) -> OutputFormat:
    if raw_format is None:
        return request.output_format or "png"
    if request.output_format not in (None, raw_format):
        raise ApiError(
            f"output_format: {request.output_format} contradicts the Accept header's {raw_format}",
            param="output_format",
        )
    return raw_format


def _compression(request: ImageRequest, output_format: OutputFormat) -> int:
    compression = request.output_compression
    if compression is None:
        return 100
    if output_format == "png" and compression < 100:
        raise ApiError(
            "output_compression: a png is lossless; choose output_format jpeg or webp",
            param="output_compression",
        )
    return compression
