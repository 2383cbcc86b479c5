"""What a client gets: OpenAI's keys, and beside them how each picture was made."""

import base64
import time
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from cdm_serve.api.encode import OutputFormat
from cdm_serve.api.plan import Plan


class Receipt(BaseModel):
    """How a picture was made; the same seed, steps, size and fingerprint make it again."""

    seed: int
    steps: int
    size: str
    model: str
    fingerprint: str = Field(description="of the exported model, a SHA-256")
    batches: list[int] = Field(description="how many pictures shared each step")
    milliseconds: dict[str, float] = Field(description="by stage; text, steps, decode and others")
    spans: list[tuple[str, float, float]] = Field(
        description="stage, milliseconds after arrival, milliseconds; stages overlap"
    )


class ImageItem(BaseModel):
    """One picture: its file in base64, or its address."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    receipt: Receipt


class TokenDetails(BaseModel):
    """Of what the input was."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Tokens read by the text encoder; latent positions written by the transformer."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class ImageAnswer(BaseModel):
    """The answer to ``POST /v1/images/generations``."""

    created: int
    data: list[ImageItem]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"]
    size: str
    usage: Usage


@dataclass(frozen=True)
class PartialMade:
    """What picture ``number`` of the request will look like, foreseen after ``step`` steps."""

    file: bytes
    number: int
    seed: int
    index: int
    step: int


@dataclass(frozen=True)
class Made:
    """Picture ``number`` of the request: its file, receipt and how many tokens its prompt had."""

    file: bytes
    number: int
    receipt: dict[str, Any]
    tokens: int


def image_answer(plan: Plan, pictures: list[Made], urls: list[str]) -> dict[str, Any]:
    """An ``ImageAnswer``; with addresses instead of files where there are ``urls``."""
    if urls:
        places = [{"url": url} for url in urls]
    else:
        places = [{"b64_json": base64.b64encode(made.file).decode()} for made in pictures]
    return {
        "created": int(time.time()),
        "data": [
            {**place, "seed": made.receipt["seed"], "receipt": made.receipt}
            for place, made in zip(places, pictures, strict=True)
        ],
        **picture_facts(plan),
        "usage": usage(plan, [made.tokens for made in pictures]),
    }


def picture_facts(plan: Plan) -> dict[str, str]:
    """What answers and events alike say of their pictures."""
    return {
        "background": "opaque",
        "output_format": plan.output_format,
        "quality": plan.quality,
        "size": plan.size,
    }


def usage(plan: Plan, tokens: list[int]) -> dict[str, Any]:
    """A ``Usage`` of pictures whose prompts had so many tokens."""
    positions = (plan.width // plan.model.downscale) * (plan.height // plan.model.downscale)
    output_tokens = positions * len(tokens)
    return {
        "input_tokens": sum(tokens),
        "input_tokens_details": {"text_tokens": sum(tokens), "image_tokens": 0},
        "output_tokens": output_tokens,
        "total_tokens": sum(tokens) + output_tokens,
    }
