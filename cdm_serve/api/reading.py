"""From the JSON of a request to an ``ImageRequest`` or another class with such fields.

People send what other servers and libraries understand. What has one common meaning is taken so;
what this server cannot do is left out and told as a warning; with ``strict`` both are refused.
What is refused is told all at once.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from cdm_serve.api.errors import ApiError
from cdm_serve.api.schema import FIXED

# More of them are counted and not told: a body has room for thousands.
TOLD = 10
ALIASES = {
    "steps": "num_inference_steps",
    "sampling_steps": "num_inference_steps",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "num_outputs": "n",
    "batch_size": "n",
    "image_size": "size",
    "aspect_ratio": "size",
    "aspectRatio": "size",
    "format": "output_format",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "true_cfg_scale": "guidance_scale",
    "rng_seed": "seed",
    "denoising_strength": "strength",
}
# No picture of this server depends on them.
HARMLESS = {"moderation", "generator_device"}
# Without these the picture would be another, however it is warned of.
PICTURES = re.compile(r"images?(_urls?)?|(init|input|reference|control)_(image|reference)s?|mask")
STYLES = re.compile(r"loras?")
WORDS = {
    "jpg": "jpeg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
    "base64": "b64_json",
    "b64": "b64_json",
}
NAMED = ("decoder", "quality", "response_format", "output_format", "background")
SIZE = re.compile(r"\s*(\d+)(?:\.0*)?\s*(?:[xX*:\u00d7]\s*(\d+)(?:\.0*)?\s*)?")

R = TypeVar("R", bound=BaseModel)


@dataclass
class Notes:
    """What is found in a request: what the answer warns of, and what is wrong with it."""

    strict: bool
    warnings: list[str] = field(default_factory=list)
    faults: list[ApiError] = field(default_factory=list)

    def refuse(self, fault: ApiError) -> None:
        """Refuse the request, when all has been looked at."""
        self.faults.append(fault)

    def tolerate(self, fault: ApiError, instead: str) -> None:
        """Do ``instead`` and say so; where that is not allowed, refuse."""
        if self.strict:
            self.refuse(fault)
        else:
            self.warnings.append(f"{fault}; {instead}")

    def settle(self) -> None:
        """Go on only if nothing is wrong.

        Raises:
            ApiError: all faults; status, code and field are those of the first.
        """
        if self.faults:
            first = self.faults[0]
            raise ApiError(
                "; ".join(some(list(map(str, self.faults)))),
                status=first.status,
                param=first.param,
                code=first.code,
            )


def some(texts: list[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = len(texts) - TOLD
    return texts if more <= 0 else [*texts[:TOLD], f"and {more} more"]


async def json_fields(request: Request) -> dict[str, Any]:
    """The body of a request.

    Raises:
        ApiError: it is no JSON object, or not said to be one.
    """
    content_type = request.headers.get("content-type", "")
    if not is_json(content_type):
        raise ApiError(f"content-type is {content_type or 'missing'}: send application/json")
    return json_object(await request.body())


def is_json(content_type: str) -> bool:
    """Whether a body is said to be JSON, which pages of other origins may not send unasked."""
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


def json_object(body: bytes) -> dict[str, Any]:
    """What a body says.

    Raises:
        ApiError: it is no JSON object.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it is no text, or nested too deep")
        raise ApiError(f"the body is not valid JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise ApiError("the body must be a JSON object")
    return fields


def read_request(given: Mapping[str, Any], kind: type[R], notes: Notes) -> R:
    """The request, as far as it can be had; look at ``notes`` before it is served.

    Only ``prompt`` may be a required field of ``kind``.
    """
    fields = dict(given) if notes.strict else _as_meant(given)
    unknown = [name for name in fields if name not in kind.model_fields]
    for name in unknown:
        del fields[name]
        param = name[:40].encode(errors="replace").decode()  # half a surrogate pair is no UTF-8
        picture = PICTURES.fullmatch(name)
        what = "pictures go to POST /v1/images/edits, as image" if picture else "unknown parameter"
        fault = ApiError(f"{param}: {what}", param=param, code="unknown_parameter")
        if picture or STYLES.fullmatch(name):
            notes.refuse(fault)
        else:
            notes.tolerate(fault, "ignored")
    for name, (possible, why) in FIXED.items():
        if fields.get(name) is not None and fields[name] not in possible:
            del fields[name]
            fault = ApiError(f"{name}: {why}", param=name, code="invalid_value")
            notes.tolerate(fault, "ignored")
    try:
        return kind.model_validate(fields, strict=notes.strict)
    except ValidationError as error:
        for each in error.errors():
            name = str(each["loc"][0])
            notes.refuse(_fault(name, each["type"], each["msg"]))
            fields.pop(name, None)
    # So that the rest is looked at too.
    return kind.model_validate({"prompt": "-"} | fields, strict=notes.strict)


def _as_meant(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing, in this server's words and numbers."""
    fields = {
        name: value
        for name, value in given.items()
        if name == "prompt" or (value not in (None, "", [], {}) and name not in HARMLESS)
    }
    for alias, name in ALIASES.items():
        if alias in fields and name not in fields:
            fields[name] = fields.pop(alias)
    sides = [fields.pop(side) for side in ("width", "height") if side in fields]
    if sides:
        fields.setdefault("size", "x".join(map(str, sides)))
    if found := SIZE.fullmatch(str(fields.get("size"))):
        fields["size"] = f"{found[1]}x{found[2] or found[1]}"
    for name in NAMED:
        if isinstance(word := fields.get(name), str):
            fields[name] = WORDS.get(word.lower(), word.lower())
    if _number(fields.get("seed")) == -1:
        del fields["seed"]
    # Without guidance is how such models run: 0 and 1 are two ways to say so.
    if _number(fields.get("guidance_scale")) in (0, 1):
        del fields["guidance_scale"]
    return fields


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _fault(param: str, kind: str, message: str) -> ApiError:
    """One of pydantic's complaints, in a sentence that names the field."""
    if kind == "missing":
        code = "missing_required_parameter"
        return ApiError(f"{param} is required", param=param, code=code)
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return ApiError(f"{param}: {message}", param=param, code="invalid_value")
