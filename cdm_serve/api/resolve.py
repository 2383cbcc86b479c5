"""From a request and its headers to a plan: every default filled in, contradictions refused."""

import math
import secrets
import time

from starlette.datastructures import Headers

from cdm_serve.api.errors import ApiError
from cdm_serve.api.models import find_model
from cdm_serve.api.plan import Plan
from cdm_serve.api.schema import QUALITY_STEPS, ImageRequest, OutputFormat
from cdm_serve.engine.card import ModelCard

OWN_TIMEOUT = "x-request-timeout-ms"
ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
OPENAI_TIMEOUT = "x-stainless-read-timeout"
RAW_TYPES: dict[str, OutputFormat] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}


def seconds_allowed(headers: Headers, *, stream: bool) -> float | None:
    """How long the client will wait, as it or a proxy says: the least, None when nothing is said.

    ``x-request-timeout-ms`` is this server's own header; Envoy and Istio send theirs, and OpenAI's
    clients theirs, in seconds. The latter is for the silence between two reads, which is the whole
    answer unless that is streamed.

    Raises:
        ApiError: this server's own header is no positive number.
    """
    own, envoy, openai = (
        _positive(headers.get(name, "")) for name in (OWN_TIMEOUT, ENVOY_TIMEOUT, OPENAI_TIMEOUT)
    )
    if own is None and OWN_TIMEOUT in headers:
        raise ApiError(
            f"{OWN_TIMEOUT}: {headers[OWN_TIMEOUT][:40]!r} is no positive number of milliseconds",
            param=OWN_TIMEOUT,
        )
    seconds = [milliseconds / 1e3 for milliseconds in (own, envoy) if milliseconds is not None]
    if openai is not None and not stream:
        seconds.append(openai)
    return min(seconds, default=None)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def make_plan(
    request: ImageRequest,
    accept: str,
    models: dict[str, ModelCard],
    prompt_limit: int,
    allowed: float | None = None,
) -> Plan:
    """The plan of a request with this Accept header.

    ``allowed`` is how many seconds there are, from now.

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
    itself = "the Accept header, which asks for the picture itself"
    if raw and count > 1:
        raise ApiError("n: only 1 picture fits an image answer; accept application/json", param="n")
    if raw and request.stream:
        raise ApiError(f"stream: contradicts {itself}", param="stream")
    if request.response_format == "url" and (raw or request.stream):
        form = itself if raw else "stream"
        raise ApiError(f"response_format: url contradicts {form}", param="response_format")
    if request.partial_images and not request.stream:
        raise ApiError("partial_images: only with stream true", param="partial_images")


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
