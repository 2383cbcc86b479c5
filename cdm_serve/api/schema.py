"""The request and the answer of ``POST /v1/images/generations``, as OpenAI has them.

What a request says is honoured, warned of in the answer or refused, never dropped in silence.
"""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)

OutputFormat = Literal["png", "jpeg", "webp"]

# The largest integer that every JSON reader keeps exactly.
MAX_SEED = 2**53 - 1
Decoder = Literal["full", "tiny"]

QUALITY_STEPS = {
    "low": 1,
    "medium": 2,
    "high": 4,
    "standard": 4,
    "hd": 4,
    "xhigh": 8,
    "max": 16,
}
# Fields of which only these values are possible, and what others are told.
FIXED: dict[str, tuple[list[Any], str]] = {
    "background": (
        ["auto", "opaque"],
        "only auto or opaque: pictures have no transparency",
    ),
    "moderation": (["auto"], "only auto: this server has no moderation to adjust"),
    "style": ([], "is not supported: say the style in the prompt"),
    "negative_prompt": ([""], "is not supported: a distilled model runs without guidance"),
    "guidance_scale": ([1.0], "only 1.0: guidance is distilled into the model"),
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


def _fixed(name: str) -> Any:
    return _documented(enum=[*FIXED[name][0], None])


class ImageRequest(BaseModel):
    """OpenAI's fields, and ``seed``, ``num_inference_steps`` and ``decoder`` beside them."""

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
    # At most as many as the model has, which is where it is looked at.
    num_inference_steps: Annotated[int, Field(ge=1), _documented(maximum=16)] | None = None
    decoder: Decoder | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    background: Annotated[str | None, _fixed("background")] = None
    moderation: Annotated[str | None, _fixed("moderation")] = None
    style: Annotated[str | None, _fixed("style")] = None
    negative_prompt: Annotated[str | None, _fixed("negative_prompt")] = None
    guidance_scale: Annotated[float | None, _fixed("guidance_scale")] = None
    user: str | None = None
    safety_identifier: str | None = None


class Receipt(BaseModel):
    """How a picture was made; the same seed, steps, size and fingerprint make it again."""

    seed: int
    steps: int
    size: str
    model: str
    fingerprint: str = Field(description="of the exported model, a SHA-256")
    decoder: Decoder = Field(description="that made its pixels")
    strength: float | None = Field(None, description="of an edit, of which the last steps are made")
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
    """Pictures as JSON."""

    created: int
    data: list[ImageItem]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"]
    size: str
    usage: Usage
    warnings: list[str] = Field(description="what was asked for and not done, or done otherwise")
