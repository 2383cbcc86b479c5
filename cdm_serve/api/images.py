"""``POST /v1/images/generations``."""

import asyncio
import base64
import json
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from cdm_serve.api.admission import Admission, PictureCost, Ticket
from cdm_serve.api.answer import EventStream, image_answer, place, raw_answer
from cdm_serve.api.errors import CLIENT_LEFT, ApiError, documented
from cdm_serve.api.files import ROUTE as FILES
from cdm_serve.api.files import FileStore, public_address
from cdm_serve.api.generation import ImageGenerator
from cdm_serve.api.jobs import Jobs, JobState, prefers_job
from cdm_serve.api.limits import RateLimits
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.moderation import Moderation
from cdm_serve.api.plan import Made, Plan
from cdm_serve.api.reading import Notes, json_fields, read_request
from cdm_serve.api.resolve import make_plan, seconds_allowed
from cdm_serve.api.schema import ImageAnswer, ImageRequest
from cdm_serve.backend import Backend, BackendLost
from cdm_serve.settings import Settings

ROUTE = "/v1/images/generations"
SDCPP = "/sdapi/v1/txt2img"
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
    """What the routes need, and what they do with it."""

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
        """The routes."""
        router = APIRouter()

        @router.post(ROUTE, responses=ANSWERS, response_class=JSONResponse, openapi_extra=BODY)
        async def generate(request: Request) -> Response:
            """Make pictures of a prompt; OpenAI's request and answer, or the picture itself."""
            accept = request.headers.get("accept", "*/*")
            return await self.serve(await self._of_a_prompt(request, accept), request)

        @router.options(ROUTE, status_code=204)
        async def methods() -> Response:
            """Say that it is here: so SillyTavern finds a server of stable-diffusion.cpp."""
            return Response(status_code=204, headers={"allow": "OPTIONS, POST"})

        @router.post(SDCPP, include_in_schema=False)
        async def sdcpp(request: Request) -> Response:
            """Make a picture for who knows stable-diffusion.cpp's server, as SillyTavern does."""
            made = await self.serve(await self._of_a_prompt(request, "image/png"), request)
            told = {name: text for name, text in made.headers.items() if name.startswith("x-")}
            answer = {
                "images": [base64.b64encode(made.body).decode()],
                "parameters": {},
                "info": "",
            }
            return JSONResponse(answer, made.status_code, told)

        return router

    async def _of_a_prompt(self, request: Request, accept: str) -> Plan:
        notes = Notes(self.settings.strict)
        body = read_request(await json_fields(request), ImageRequest, notes)
        plan = self.plan(body, notes, request, accept)
        if plan.model.needs_picture:
            raise ApiError(
                f"model: {plan.model.id} makes nothing of a prompt alone, it edits a picture: "
                "send one to /v1/images/edits",
                param="model",
                code="invalid_value",
            )
        return plan

    def plan(self, body: ImageRequest, notes: Notes, request: Request, accept: str) -> Plan:
        """What is to be made of a request; ``accept`` is what is to be answered.

        Raises:
            ApiError: something in it is wrong.
            BackendLost: no model is there yet.
        """
        if not self.backend.ready:
            raise BackendLost("the model is being loaded")
        later = prefers_job(request)
        allowed = seconds_allowed(request.headers, stream=bool(body.stream), later=later)
        models = self.backend.models
        return make_plan(body, notes, accept, models, self.settings, allowed, later=later)

    async def serve(self, plan: Plan, request: Request) -> Response:
        """The answer, when its prompt may be served, there is room for the plan and it was made.

        Raises:
            ApiError: it may not, or there is no room.
            BackendError, BackendLost: the model failed.
        """
        await self.moderation.check(plan.prompt)
        ticket = await self._admit(plan, request)
        try:
            response = await self._answer(plan, ticket, request)
            if plan.warnings:
                response.headers["x-warnings"] = json.dumps(plan.warnings)
            return response
        except ClientLeft:
            ticket.close()
            self.metrics.clients_left.inc()
            return Response(status_code=CLIENT_LEFT)  # only the log reads it
        except BaseException:
            ticket.close()
            raise

    async def _admit(self, plan: Plan, request: Request) -> Ticket:
        later = prefers_job(request)
        allowed = seconds_allowed(request.headers, stream=plan.stream, later=later)
        steps, costs = plan.steps - plan.start, plan.model.costs
        asked = (plan.size, steps, plan.partials, plan.decoder)
        cost = PictureCost.of(costs, *asked, incoming=plan.edit)
        with self.metrics.counting_shed():
            ticket = self.admission.admit(cost, len(plan.seeds), allowed)
            try:
                await self.limits.spend(request.state.owner, len(plan.seeds))
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
        places = [place(made.file, await self._link(plan, made, request)) for made in pictures]
        return JSONResponse(image_answer(plan, pictures, places))

    async def _link(self, plan: Plan, made: Made, request: Request) -> str | None:
        """The address of a picture where one is wanted."""
        if not plan.link:
            return None
        name = await self.store.put(made.file, plan.output_format)
        return public_address(request, self.settings.public_url, f"{FILES}/{name}")


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
