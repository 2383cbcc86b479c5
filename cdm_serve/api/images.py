"""``POST /v1/images/generations``."""

import json
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cdm_serve.api.admission import Admission, Ticket
from cdm_serve.api.answer import ImageAnswer, Made, image_answer
from cdm_serve.api.deadline import seconds_allowed
from cdm_serve.api.errors import documented
from cdm_serve.api.files import FileStore, file_url
from cdm_serve.api.leaving import ClientLeft, unless_client_leaves
from cdm_serve.api.limits import Limits
from cdm_serve.api.plan import Plan, make_plan
from cdm_serve.api.schema import ImageRequest
from cdm_serve.api.stream import EventStream
from cdm_serve.api.studio import Studio
from cdm_serve.api.watch import Watch
from cdm_serve.backend import Backend, BackendLost
from cdm_serve.settings import Settings

ROUTE = "/v1/images/generations"
PICTURE = {"schema": {"type": "string", "format": "binary"}}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImageAnswer,
        "description": "The pictures: as JSON; as events, where `stream` is true; or the one "
        "picture itself, where Accept asks for an image",
        "content": {
            "image/png": PICTURE,
            "image/jpeg": PICTURE,
            "image/webp": PICTURE,
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **documented(400, 401, 404, 408, 413, 429, 500, 503, 504),
}


class Images:
    """What the route needs, and what it does with it."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        limits: Limits,
        admission: Admission,
        studio: Studio,
        store: FileStore,
        watch: Watch,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._limits = limits
        self._admission = admission
        self._studio = studio
        self._store = store
        self._watch = watch

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter()

        @router.post(ROUTE, responses=ANSWERS, response_class=JSONResponse)
        async def generate(body: ImageRequest, request: Request) -> Response:
            """Make pictures of a prompt; OpenAI's request and answer, or the picture itself."""
            if not self._backend.ready:
                raise BackendLost("the model is being loaded")
            plan, ticket = self._admit(body, request)
            try:
                return await self._generate(plan, ticket, request)
            except ClientLeft:
                ticket.close()
                self._watch.left.inc()
                return Response(status_code=499)  # only the log reads it
            except BaseException:
                ticket.close()
                raise

        return router

    async def _generate(self, plan: Plan, ticket: Ticket, request: Request) -> Response:
        if plan.stream:
            events = self._studio.make(plan, ticket)
            # Waited for, so that what fails before there is anything to show has its own status.
            first = await unless_client_leaves(request, anext(events))
            return EventStream(plan, first, events)
        pictures = await unless_client_leaves(request, self._collect(plan, ticket))
        if plan.raw:
            (made,) = pictures
            headers = {"x-receipt": json.dumps(made.receipt)}
            headers |= {f"x-{name}": str(made.receipt[name]) for name in ("seed", "steps")}
            return Response(made.file, media_type=f"image/{plan.output_format}", headers=headers)
        names = [self._store.put(made.file, plan.output_format) for made in pictures if plan.link]
        urls = [file_url(request, self._settings.public_url, name) for name in names]
        return JSONResponse(image_answer(plan, pictures, urls))

    def _admit(self, body: ImageRequest, request: Request) -> tuple[Plan, Ticket]:
        allowed = seconds_allowed(request.headers, stream=bool(body.stream))
        accept = request.headers.get("accept", "*/*")
        models, prompt_limit = self._backend.models, self._settings.prompt_limit
        plan = make_plan(body, accept, models, prompt_limit, allowed)
        with self._watch.shed():
            ticket = self._admission.admit(plan, allowed)
            try:
                self._limits.spend(request.state.owner, len(plan.seeds))
            except BaseException:
                ticket.close()
                raise
        return plan, ticket

    async def _collect(self, plan: Plan, ticket: Ticket) -> list[Made]:
        made: list[Made] = []
        async with aclosing(self._studio.make(plan, ticket)) as events:
            async for event in events:
                if isinstance(event, Made):
                    made.append(event)
        return sorted(made, key=lambda picture: picture.number)
