"""The body of ``POST /v1/images/generations``: each field is honoured or refused by name."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from cdm_serve.api.encode import OutputFormat

# The largest integer that every JSON reader keeps exactly.
MAX_SEED = 2**53 - 1
QUALITY_STEPS = {
    "low": 1,
    "medium": 2,
    "high": 4,
    "standard": 4,
    "hd": 4,
    "xhigh": 8,
    "max": 16,
}


def _prompt(prompt: str) -> str:
    if not prompt.strip():
        raise ValueError("must not be empty")
    for character in prompt:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in "\n\r\t"):
            raise ValueError(f"must not contain the character U+{ord(character):04X}")
    return prompt


class ImageRequest(BaseModel):
    """OpenAI's fields, and ``seed`` and ``num_inference_steps`` beside them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, AfterValidator(_prompt)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"] | None = (
        None
    )
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    partial_images: int | None = None
    background: str | None = None
    moderation: str | None = None
    style: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @field_validator("stream")
    @classmethod
    def _no_stream(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("streaming is not supported: leave it out or send false")
        return value

    @field_validator("partial_images")
    @classmethod
    def _no_partial_images(cls, value: int | None) -> int | None:
        if value:
            raise ValueError("partial images are not supported: leave it out or send 0")
        return value

    @field_validator("background")
    @classmethod
    def _opaque(cls, value: str | None) -> str | None:
        if value == "opaque":
            return value
        return _only(value, "auto", "pictures have no transparency")

    @field_validator("moderation")
    @classmethod
    def _no_moderation(cls, value: str | None) -> str | None:
        return _only(value, "auto", "this server has no moderation to adjust")

    @field_validator("style")
    @classmethod
    def _no_style(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("is not supported: say the style in the prompt")
        return value

    @field_validator("negative_prompt")
    @classmethod
    def _no_negative_prompt(cls, value: str | None) -> str | None:
        if value:
            raise ValueError("is not supported: a distilled model runs without guidance")
        return value

    @field_validator("guidance_scale")
    @classmethod
    def _no_guidance(cls, value: float | None) -> float | None:
        if value not in (None, 1.0):
            raise ValueError("only 1.0 is possible: guidance is distilled into the model")
        return value


def _only(value: str | None, allowed: str, why: str) -> str | None:
    if value not in (None, allowed):
        raise ValueError(f"only {allowed} is possible: {why}")
    return value
