"""``POST /v1/images/edits`` and ``/v1/images/variations``: pictures that come in.

As multipart, which OpenAI's clients send, or as JSON with data URLs. What is not a file is read as
for generations, and so is everything made that comes after the picture was decoded.
"""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from cdm_serve.api.decode import Prepared, prepare
from cdm_serve.api.errors import ApiError, documented, too_many
from cdm_serve.api.images import ANSWERS, Images
from cdm_serve.api.plan import Plan
from cdm_serve.api.reading import Notes, is_json, json_object, read_request
from cdm_serve.api.resolve import possible
from cdm_serve.api.schema import ImageRequest
from cdm_serve.engine.card import ModelCard

EDITS, VARIATIONS = ROUTES = ("/v1/images/edits", "/v1/images/variations")
IMAGES = ("image", "images", "image_url", "init_image", "init_images")
MASKS = ("mask", "mask_image", "mask_url")
# All these at once may wait in memory to be decoded, in requests of the largest size.
UPLOADS = 8
MOST_PARTS = 64
# By input_fidelity, where a request does not say it; a variation's is high unless it is said.
STRENGTHS = {"high": 0.5, "low": 0.75}
# Of fields whose text in a form is JSON: the others are text itself.
VALUES = {
    *("n", "seed", "num_inference_steps", "output_compression", "partial_images"),
    *("stream", "strength", "guidance_scale"),
}


T = TypeVar("T")


class EditRequest(ImageRequest):
    """OpenAI's fields but the files, ``strength``, and what generations have beside OpenAI's."""

    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: Literal["high", "low"] | None = None


class VariationRequest(EditRequest):
    """An edit that may do without a prompt."""

    prompt: str = ""


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


@dataclass
class Edits:
    """The two routes; pictures are decoded in ``executor``."""

    images: Images
    executor: Executor
    held: int = 0

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter()

        @router.post(
            EDITS,
            responses=ANSWERS | documented(403),
            response_class=JSONResponse,
            openapi_extra=_body(EditRequest),
        )
        async def edit(request: Request) -> Response:
            """Make pictures of a picture and a prompt, anew or where a mask says."""
            return await self._answer(request, EditRequest)

        @router.post(
            VARIATIONS,
            responses=ANSWERS | documented(403),
            response_class=JSONResponse,
            openapi_extra=_body(VariationRequest),
        )
        async def vary(request: Request) -> Response:
            """Make pictures that are like a picture."""
            return await self._answer(request, VariationRequest)

        return router

    async def _answer(self, request: Request, kind: type[EditRequest]) -> Response:
        return await self.images.serve(await self._plan(request, kind), request)

    async def _plan(self, request: Request, kind: type[EditRequest]) -> Plan:
        """With the decoded picture in it; of the files nothing is kept."""
        notes = Notes(self.images.settings.strict)
        with self._counted(request) as stream:
            upload = await self._upload(request, stream, notes)
            body = read_request(upload.fields, kind, notes)
            plan = self.images.plan(body, notes, request)
            check_model(plan.model)
            asked = body.size not in (None, "auto")
            sizes = (plan.size,) if asked else (plan.model.default_size, *plan.model.sizes)
            mask = upload.masks[0] if upload.masks else None
            most = 0 if asked else self.images.settings.max_pixels or 0
            own = partial(possible, model=plan.model, most=most)
            prepared = await self._aside(prepare, upload.images[0], mask, sizes, own)
        return _edited(plan, body, prepared)

    async def _upload(
        self, request: Request, stream: AsyncGenerator[bytes, None], notes: Notes
    ) -> Upload:
        """The body, read to its end.

        Raises:
            ApiError: it is neither a form nor a JSON object.
        """
        content_type = request.headers.get("content-type", "")
        parts: list[tuple[str, Any]]
        if content_type.startswith("multipart/form-data"):
            self._check_origin(request)
            limit = self.images.settings.upload_limit
            options: Any = {"max_files": MOST_PARTS, "max_fields": MOST_PARTS}
            try:
                form = await Form(request.headers, stream, max_part_size=limit, **options).parse()
            except (MultiPartException, ValueError) as error:
                raise ApiError(f"the body is no valid form: {error}") from None
            parts = [
                (name, await part.read() if isinstance(part, UploadFile) else _value(name, part))
                for name, part in form.multi_items()
            ]
        elif is_json(content_type):
            whole = b"".join([chunk async for chunk in stream])
            parts = [*(await self._aside(json_object, whole)).items()]
        else:
            found = content_type or "missing"
            raise ApiError(f"content-type is {found}: send multipart/form-data or application/json")
        upload = Upload()

        def add_all() -> None:
            for name, value in parts:
                upload.add(name, value, notes)

        await self._aside(add_all)
        upload.check(notes)
        return upload

    def _check_origin(self, request: Request) -> None:
        """Refuse forms of other sites' pages, which browsers send without asking first."""
        origin, allowed = request.headers.get("origin"), self.images.settings.cors_origin
        own = request.headers.get("host")
        if origin and urlsplit(origin).netloc != own and not {"*", origin} & {*allowed}:
            raise ApiError(
                f"origin {origin[:80]!r} may not send forms here: cdm-serve --cors-origin lets it",
                status=403,
                code="origin_not_allowed",
            )

    async def _aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, work, *arguments)

    @contextmanager
    def _counted(self, request: Request) -> Iterator[AsyncGenerator[bytes, None]]:
        """The body as it comes, counted among those of all requests until it is decoded."""
        mine, most = 0, UPLOADS * self.images.settings.upload_limit

        async def stream() -> AsyncGenerator[bytes, None]:
            nonlocal mine
            async for chunk in request.stream():
                mine += len(chunk)
                self.held += len(chunk)
                if self.held > most:
                    raise too_many("other requests' pictures fill the memory", 1.0, "queue_full")
                yield chunk

        try:
            yield stream()
        finally:
            self.held -= mine


def check_model(model: ModelCard) -> None:
    """That it takes pictures.

    Raises:
        ApiError: it does not.
    """
    if not model.edits:
        raise ApiError(
            f"model: {model.id} takes no pictures, it was exported without vae_encoder: export it "
            "again with cdm-export",
            param="model",
            code="invalid_value",
        )


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


def _edited(plan: Plan, body: EditRequest, prepared: Prepared) -> Plan:
    """The plan with the picture in it, of whose steps the last are made.

    How many is diffusers' arithmetic, but never none.
    """
    strength = body.strength
    if strength is None and "mask" in prepared.tensors:
        strength = 1.0
    elif strength is None:
        variation = isinstance(body, VariationRequest)
        strength = STRENGTHS[body.input_fidelity or ("high" if variation else "low")]
    start = min(int(plan.steps - plan.steps * strength), plan.steps - 1)
    return replace(
        plan, size=prepared.size, tensors=prepared.tensors, start=start, strength=strength
    )


def _body(kind: type[EditRequest]) -> dict[str, Any]:
    """The two forms of a request for the OpenAPI document."""
    contents = {}
    for media, image in (
        ("multipart/form-data", {"type": "string", "format": "binary"}),
        ("application/json", {"type": "string", "description": "a data URL, or base64"}),
    ):
        schema = kind.model_json_schema()
        schema["properties"] |= {"image": image, "mask": image}
        schema["required"] = [*schema.get("required", []), "image"]
        contents[media] = {"schema": schema}
    return {"requestBody": {"required": True, "content": contents}}
