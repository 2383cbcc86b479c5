"""``POST /v1/images/edits`` and ``/v1/images/variations``: pictures that come in.

As multipart, which OpenAI's clients send, or as JSON with data URLs. What is not a file is read as
for generations, and so is everything made that comes after the picture was decoded.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from cdm_serve.api.decode import Prepared, prepare
from cdm_serve.api.errors import ApiError, documented, too_many
from cdm_serve.api.images import ANSWERS, Images
from cdm_serve.api.plan import Plan
from cdm_serve.api.reading import Notes, is_json, json_object, read_request
from cdm_serve.api.resolve import possible
from cdm_serve.api.schema import ImageRequest
from cdm_serve.api.uploads import Upload, form_parts
from cdm_serve.engine.card import ModelCard

EDITS, VARIATIONS = ROUTES = ("/v1/images/edits", "/v1/images/variations")
# All these at once may wait in memory to be decoded, in requests of the largest size.
UPLOADS = 8
# By input_fidelity, where a request does not say it; a variation's is high unless it is said.
STRENGTHS = {"high": 0.5, "low": 0.75}


T = TypeVar("T")


class EditRequest(ImageRequest):
    """OpenAI's fields but the files, ``strength``, and what generations have beside OpenAI's."""

    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: Literal["high", "low"] | None = None


class VariationRequest(EditRequest):
    """An edit that may do without a prompt."""

    prompt: str = ""


@dataclass
class Edits:
    """The two routes; pictures are decoded in ``executor``."""

    images: Images
    executor: Executor
    held: int = 0

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=ANSWERS | documented(403))

        @router.post(EDITS, response_class=JSONResponse, openapi_extra=_body(EditRequest))
        async def edit(request: Request) -> Response:
            """Make pictures of a picture and a prompt, anew or where a mask says."""
            return await self.images.serve(await self._plan(request, EditRequest), request)

        @router.post(VARIATIONS, response_class=JSONResponse, openapi_extra=_body(VariationRequest))
        async def vary(request: Request) -> Response:
            """Make pictures that are like a picture."""
            return await self.images.serve(await self._plan(request, VariationRequest), request)

        return router

    async def _plan(self, request: Request, kind: type[EditRequest]) -> Plan:
        """With the decoded picture in it; of the files nothing is kept."""
        notes = Notes(self.images.settings.strict)
        with self._counted(request) as stream:
            upload = await self._upload(request, stream, notes)
            body = read_request(upload.fields, kind, notes)
            accept = request.headers.get("accept", "*/*")
            plan = self.images.plan(body, notes, request, accept)
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
            parts = await form_parts(request.headers, stream, limit)
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


def _edited(plan: Plan, body: EditRequest, prepared: Prepared) -> Plan:
    """The plan with the picture in it, of whose steps the last are made.

    How many is diffusers' arithmetic, but never none.
    """
    strength = body.strength
    # A model that needs a picture sees for itself what is to stay.
    if strength is None and ("mask" in prepared.tensors or plan.model.needs_picture):
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
