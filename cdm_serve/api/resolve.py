"""From a request and its headers to a plan: every default filled in, contradictions told."""

import math
import re
import secrets
import time

from starlette.datastructures import Headers

from cdm_serve.api.errors import ApiError
from cdm_serve.api.models import find_model, usual_decoder
from cdm_serve.api.plan import Plan
from cdm_serve.api.reading import Notes, some
from cdm_serve.api.schema import QUALITY_STEPS, ImageRequest, OutputFormat
from cdm_serve.engine.card import ModelCard, divides
from cdm_serve.settings import Settings

OWN_TIMEOUT = "x-request-timeout-ms"
ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
OPENAI_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")  # of Python; of Node
IMAGE_ANSWER = "the Accept header, which asks for the picture itself"
RAW_TYPES: dict[str, OutputFormat] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}


def seconds_allowed(headers: Headers, *, stream: bool, later: bool = False) -> float | None:
    """How long the client will wait, as it or a proxy says: the least, None when nothing is said.

    Pictures that are fetched ``later`` are waited for only as long as this server's header says.

    ``x-request-timeout-ms`` is this server's own header; Envoy and Istio send theirs, and OpenAI's
    clients theirs, in seconds. The latter is for the silence between two reads, which is the whole
    answer unless that is streamed.

    Raises:
        ApiError: this server's own header is no positive number.
    """
    own, envoy, *openai = (
        _positive(headers.get(name, "")) for name in (OWN_TIMEOUT, ENVOY_TIMEOUT, *OPENAI_TIMEOUTS)
    )
    if own is None and OWN_TIMEOUT in headers:
        raise ApiError(
            f"{OWN_TIMEOUT}: {headers[OWN_TIMEOUT][:40]!r} is no positive number of milliseconds",
            param=OWN_TIMEOUT,
        )
    said = (own,) if later else (own, envoy)
    seconds = [milliseconds / 1e3 for milliseconds in said if milliseconds is not None]
    if not stream and not later:
        seconds += [each for each in openai if each is not None]
    return min(seconds, default=None)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def make_plan(
    request: ImageRequest,
    notes: Notes,
    accept: str,
    models: dict[str, ModelCard],
    settings: Settings,
    allowed: float | None = None,
    *,
    later: bool = False,
) -> Plan:
    """The plan of a request with this Accept header.

    ``allowed`` is how many seconds there are, from now; ``later``: the client fetches the pictures.

    Raises:
        ApiError: all that ``notes`` has, and every value that is not served.
    """
    if len(request.prompt) > settings.prompt_limit:
        notes.refuse(
            ApiError(
                f"prompt: has {len(request.prompt)} characters, at most "
                f"{settings.prompt_limit} are possible",
                param="prompt",
                code="string_above_max_length",
            )
        )
    try:
        model = find_model(request.model, models, settings.alias)
    except ApiError as fault:
        notes.refuse(fault)
        model = next(iter(models.values()))  # what else is wrong is told of this one
    count = 1 if request.n is None else request.n
    raw_format = _raw_format(accept)
    raw, stream = raw_format is not None, bool(request.stream)
    if raw and count > 1:
        notes.refuse(
            ApiError("n: only 1 picture fits an image answer; accept application/json", param="n")
        )
    if raw and stream:
        notes.refuse(ApiError(f"stream: contradicts {IMAGE_ANSWER}", param="stream"))
    output_format = _output_format(request, raw_format, notes)
    first = secrets.randbits(32) if request.seed is None else request.seed
    plan = Plan(
        model=model,
        prompt=request.prompt,
        seeds=tuple(range(first, first + count)),
        steps=_steps(request, model, notes),
        size=_size(request.size, model, notes, settings),
        decoder=_decoder(request, model, notes, settings),
        output_format=output_format,
        compression=_compression(request, output_format, notes),
        raw=raw,
        link=_link(request, settings, notes, raw=raw),
        stream=stream,
        partials=_partials(request, notes, shown=stream or later),
        deadline=None if allowed is None else time.time() + allowed,
        warnings=tuple(some(notes.warnings)),
    )
    notes.settle()
    return plan


def _link(request: ImageRequest, settings: Settings, notes: Notes, *, raw: bool) -> bool:
    """Whether to answer with an address, which takes an answer in JSON."""
    if not raw and not request.stream:
        # OpenAI's models of that name answer so, and their clients rely on it.
        usual = "url" if (request.model or "").startswith("dall-e") else "b64_json"
        return (request.response_format or settings.response_format or usual) == "url"
    if request.response_format == "url":
        form = IMAGE_ANSWER if raw else "stream"
        fault = ApiError(f"response_format: url contradicts {form}", param="response_format")
        notes.tolerate(fault, "the picture itself is sent")
    return False


def _partials(request: ImageRequest, notes: Notes, *, shown: bool) -> int:
    if request.partial_images and not shown:
        fault = ApiError("partial_images: only with stream true", param="partial_images")
        notes.tolerate(fault, "ignored")
        return 0
    return request.partial_images or 0


def _steps(request: ImageRequest, model: ModelCard, notes: Notes) -> int:
    by_quality = QUALITY_STEPS.get(request.quality or "auto")
    steps = request.num_inference_steps or by_quality or model.default_steps
    if by_quality not in (None, steps):
        fault = ApiError(
            f"num_inference_steps: {steps} contradicts quality {request.quality}, which is "
            f"{by_quality}: give one of them",
            param="num_inference_steps",
        )
        notes.tolerate(fault, "the steps hold")
    if steps > model.max_steps:
        param = "quality" if request.num_inference_steps is None else "num_inference_steps"
        fault = ApiError(
            f"{param}: {steps} steps are too many, {model.id} goes up to {model.max_steps}",
            param=param,
        )
        notes.tolerate(fault, f"{model.max_steps} are made")
        steps = model.max_steps
    return steps


def _size(size: str | None, model: ModelCard, notes: Notes, settings: Settings) -> str:
    if size is None or size == "auto":
        return model.default_size
    if size in model.sizes or possible(size, model, settings.max_pixels or 0):
        return size
    served = ", ".join(model.sizes)
    if settings.max_pixels and model.multiple:
        served += f", and sides that are multiples of {model.multiple}"
        served += f" with up to {settings.max_pixels} pixels"
    fault = ApiError(
        f"size: {size[:40]!r} is not served by {model.id}, only {served}",
        param="size",
        code="invalid_value",
    )
    if settings.size != "nearest" or not re.fullmatch("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", size):
        notes.refuse(fault)
        return model.default_size
    found = min(model.sizes, key=lambda other: _difference(size, other))
    notes.tolerate(fault, f"made in {found}")
    return found


def possible(size: str, model: ModelCard, most: int) -> bool:
    """Whether it is one that the model divides, of at most so many pixels."""
    if not divides(model.multiple, model.longest_side, size):
        return False
    width, height = map(int, size.split("x"))
    return width * height <= most


def _decoder(request: ImageRequest, model: ModelCard, notes: Notes, settings: Settings) -> str:
    """The request's, or the usual one of the model."""
    if request.decoder in (None, *model.decoders):
        return request.decoder or usual_decoder(model, settings)
    fault = ApiError(
        f"decoder: {model.id} has no {request.decoder} one: export it with cdm-export --decoder",
        param="decoder",
        code="invalid_value",
    )
    notes.tolerate(fault, "the full one is used")
    return "full"


def _difference(size: str, other: str) -> tuple[float, float]:
    """In shape before all, then in area."""
    (width, height), (w, h) = (map(int, each.split("x")) for each in (size, other))
    shape, area = (width * h) / (height * w), (width * height) / (w * h)
    return abs(math.log(shape)), abs(math.log(area))


def _raw_format(accept: str) -> OutputFormat | None:
    """The picture format of the Accept header when that stands before any JSON."""
    for part in accept.lower().split(","):
        media = part.partition(";")[0].strip()
        if media in RAW_TYPES:
            return RAW_TYPES[media]
        if media in ("application/json", "application/*", "*/*"):
            return None
    return None


def _output_format(
    request: ImageRequest, raw_format: OutputFormat | None, notes: Notes
) -> OutputFormat:
    if raw_format is None:
        return request.output_format or "png"
    if request.output_format not in (None, raw_format):
        fault = ApiError(
            f"output_format: {request.output_format} contradicts the Accept header's {raw_format}",
            param="output_format",
        )
        notes.tolerate(fault, f"{raw_format} is sent")
    return raw_format


def _compression(request: ImageRequest, output_format: OutputFormat, notes: Notes) -> int:
    compression = request.output_compression
    if compression is None:
        return 100
    if output_format == "png" and compression < 100:
        fault = ApiError(
            "output_compression: a png is lossless; choose output_format jpeg or webp",
            param="output_compression",
        )
        notes.tolerate(fault, "ignored")
        return 100
    return compression
