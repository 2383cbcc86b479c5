"""``POST /v1/images/generations``."""

import asyncio
import json
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cdm_serve.api.admission import Admission, PictureCost, Ticket
from cdm_serve.api.answer import EventStream, image_answer, raw_answer
from cdm_serve.api.auth import RateLimits
from cdm_serve.api.errors import documented
from cdm_serve.api.files import ROUTE as FILES
from cdm_serve.api.files import FileStore, public_address
from cdm_serve.api.generation import ImageGenerator
from cdm_serve.api.jobs import Jobs, JobState, prefers_job
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.moderation import Moderation
from cdm_serve.api.plan import Made, Plan
from cdm_serve.api.reading import Notes, json_fields, read_request
from cdm_serve.api.resolve import make_plan, seconds_allowed
from cdm_serve.api.schema import ImageAnswer, ImageRequest
from cdm_serve.backend import Backend, BackendLost
from cdm_serve.settings import Settings

ROUTE = "/v1/images/generations"
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": ImageRequest.model_json_schema()}},
    }
}
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
    202: {"model": JobState, "description": "Prefer: respond-async; ask at Location for the rest"},
    **documented(400, 401, 404, 408, 413, 429, 500, 503, 504),
}

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """What the route needs, and what it does with it."""

    settings: Settings
    backend: Backend
    limits: RateLimits
    admission: Admission
    generator: ImageGenerator
    store: FileStore
    jobs: Jobs
    metrics: Metrics
    moderation: Moderation

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter()

        @router.post(ROUTE, responses=ANSWERS, response_class=JSONResponse, openapi_extra=BODY)
        async def generate(request: Request) -> Response:
            """Make pictures of a prompt; OpenAI's request and answer, or the picture itself."""
            notes = Notes(self.settings.strict)
            body = read_request(await json_fields(request), ImageRequest, notes)
            return await self.serve(self.plan(body, notes, request), request)

        return router

    def plan(self, body: ImageRequest, notes: Notes, request: Request) -> Plan:
        """What is to be made of a request.

        Raises:
            ApiError: something in it is wrong.
            BackendLost: no model is there yet.
        """
        if not self.backend.ready:
            raise BackendLost("the model is being loaded")
        later = prefers_job(request)
        allowed = seconds_allowed(request.headers, stream=bool(body.stream), later=later)
        accept = request.headers.get("accept", "*/*")
        models = self.backend.models
        return make_plan(body, notes, accept, models, self.settings, allowed, later=later)

    async def serve(self, plan: Plan, request: Request) -> Response:
        """The answer, when its prompt may be served, there is room for the plan and it was made.

        Raises:
            ApiError: it may not, or there is no room.
            BackendError, BackendLost: the model failed.
        """
        await self.moderation.check(plan.prompt)
        ticket = self._admit(plan, request)
        try:
            response = await self._answer(plan, ticket, request)
            if plan.warnings:
                response.headers["x-warnings"] = json.dumps(plan.warnings)
            return response
        except ClientLeft:
            ticket.close()
            self.metrics.clients_left.inc()
            return Response(status_code=499)  # only the log reads it
        except BaseException:
            ticket.close()
            raise

    def _admit(self, plan: Plan, request: Request) -> Ticket:
        later = prefers_job(request)
        allowed = seconds_allowed(request.headers, stream=plan.stream, later=later)
        steps, costs = plan.steps - plan.start, plan.model.costs
        cost = PictureCost.of(costs, plan.size, steps, plan.partials, incoming=plan.edit)
        with self.metrics.counting_shed():
            ticket = self.admission.admit(cost, len(plan.seeds), allowed)
            try:
                self.limits.spend(request.state.owner, len(plan.seeds))
            except BaseException:
                ticket.close()
                raise
        return ticket

    async def _answer(self, plan: Plan, ticket: Ticket, request: Request) -> Response:
        events = self.generator.generate(plan, ticket)
        if plan.stream:
            # Waited for, so that what fails before there is anything to show has its own status.
            first = await unless_client_leaves(request, anext(events))
            return EventStream(plan, first, events)
        if prefers_job(request) and not plan.raw:
            return await self.jobs.start(plan, ticket, events, request)

        async def collect() -> list[Made]:
            async with aclosing(events):
                return [event async for event in events if isinstance(event, Made)]

        pictures = await unless_client_leaves(request, collect())
        pictures.sort(key=lambda made: made.number)
        if plan.raw:
            return raw_answer(plan, pictures[0])
        names = [
            await self.store.put(made.file, plan.output_format) for made in pictures if plan.link
        ]
        base = self.settings.public_url
        urls = [public_address(request, base, f"{FILES}/{name}") for name in names]
        return JSONResponse(image_answer(plan, pictures, urls))


class ClientLeft(Exception):
    """Nobody is there to be answered."""


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client closes its connection.

    Call it when the body has been read: from then on there is nothing to receive but the end.

    Raises:
        ClientLeft: the client was faster.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
