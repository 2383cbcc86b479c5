"""What a request with pictures brings: the parts of a form, or the fields of a JSON object."""

import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cdm_serve.api.errors import ApiError
from cdm_serve.api.reading import Notes

IMAGES = ("image", "images", "image_url", "init_image", "init_images")
MASKS = ("mask", "mask_image", "mask_url")
MOST_PARTS = 64
# Of fields whose text in a form is JSON: the others are text itself.
VALUES = {
    *("n", "seed", "num_inference_steps", "output_compression", "partial_images"),
    *("stream", "strength", "guidance_scale"),
}


@dataclass
class Upload:
    """What a request says, and the files that it brings."""

    fields: dict[str, Any] = field(default_factory=dict)
    images: list[bytes] = field(default_factory=list)
    masks: list[bytes] = field(default_factory=list)

    def add(self, name: str, value: Any, notes: Notes) -> None:
        """A part of a form, or a field of a JSON object."""
        name = name.removesuffix("[]")
        if name in IMAGES or name in MASKS:
            files = self.images if name in IMAGES else self.masks
            given = value if isinstance(value, list) else [value]
            for each in (each for each in given if each not in (None, "")):
                try:
                    files.append(_file(each, name))
                except ApiError as fault:
                    notes.refuse(fault)
        elif isinstance(value, bytes):
            text = f"{name[:40]}: unknown file, only image and mask are known"
            notes.refuse(ApiError(text, param=name[:40], code="unknown_parameter"))
        else:
            self.fields[name] = value

    def check(self, notes: Notes) -> None:
        """That there is one image, and one mask at most."""
        if not self.images and not notes.faults:
            code = "missing_required_parameter"
            notes.refuse(ApiError("image is required", param="image", code=code))
        for name, files in (("image", self.images), ("mask", self.masks)):
            if len(files) > 1:
                text = f"{name}: {len(files)} were sent, and the models here take one"
                notes.refuse(ApiError(text, param=name, code="invalid_value"))


class Form(MultiPartParser):
    """Kept in memory, which the limit on the body bounds; nothing is written to disk."""

    spool_max_size = 2**62


async def form_parts(
    headers: Headers, stream: AsyncGenerator[bytes, None], limit: int
) -> list[tuple[str, Any]]:
    """The parts of a form, each of ``limit`` bytes at most: files as bytes, texts as values.

    Raises:
        ApiError: it is none.
    """
    options: Any = {"max_files": MOST_PARTS, "max_fields": MOST_PARTS}
    try:
        form = await Form(headers, stream, max_part_size=limit, **options).parse()
    except (MultiPartException, ValueError) as error:
        raise ApiError(f"the body is no valid form: {error}") from None
    return [
        (name, await part.read() if isinstance(part, UploadFile) else _value(name, part))
        for name, part in form.multi_items()
    ]


def _file(value: Any, name: str) -> bytes:
    """Of a form's file, a data URL or plain base64, by itself or as ``{"image_url": ...}``.

    Raises:
        ApiError: it is none of them.
    """
    if isinstance(value, bytes):
        return value
    for key in ("image_url", "url"):
        if isinstance(value, dict):
            value = value.get(key, value)
    if not isinstance(value, str):
        raise ApiError(f"{name}: expected a file, or a data URL in base64", param=name)
    if value.startswith(("http://", "https://")):
        raise ApiError(
            f"{name}: pictures are not fetched from elsewhere: send the file, or a data URL",
            param=name,
        )
    kind, comma, content = value.partition(",")
    try:
        return base64.b64decode(content if comma else kind)
    except ValueError:
        raise ApiError(f"{name}: is no valid base64", param=name) from None


def _value(name: str, text: str) -> Any:
    """A form has only texts; those of numbers and switches are JSON."""
    try:
        return json.loads(text) if name in VALUES else text
    except (ValueError, RecursionError):
        return text
