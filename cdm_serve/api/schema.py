"""The body of ``POST /v1/images/generations``: each field is honoured or refused by name."""

import unicodedata
from typing import Annotated, Any, Literal

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


def _documented(**schema: Any) -> Any:
    """For the OpenAPI document alone: the refusal has a better sentence than pydantic's."""
    return Field(json_schema_extra=schema)


class ImageRequest(BaseModel):
    """OpenAI's fields, and ``seed`` and ``num_inference_steps`` beside them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, AfterValidator(_prompt), _documented(minLength=1, pattern=r"\S")]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str | None, _documented(pattern="^(auto|[1-9][0-9]*x[1-9][0-9]*)$")] = None
    quality: Literal["auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"] | None = (
        None
    )
    response_format: Literal["b64_json", "url"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=16)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    background: Annotated[str | None, _documented(enum=["auto", "opaque", None])] = None
    moderation: Annotated[str | None, _documented(enum=["auto", None])] = None
    style: Annotated[str | None, _documented(enum=[None])] = None
    negative_prompt: Annotated[str | None, _documented(enum=["", None])] = None
    guidance_scale: Annotated[float | None, _documented(enum=[1.0, None])] = None
    user: str | None = None
    safety_identifier: str | None = None

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
