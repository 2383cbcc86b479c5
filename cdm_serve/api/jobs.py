"""Pictures that are asked for now and fetched later: ``Prefer: respond-async`` and its routes.

A job is kept in this process alone, and its pictures where those behind links are.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cachetools import TTLCache
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cdm_serve.api.admission import Ticket
from cdm_serve.api.answer import image_answer, preview_facts
from cdm_serve.api.errors import ApiError, ErrorFields, api_error, documented
from cdm_serve.api.files import ROUTE as FILES
from cdm_serve.api.files import FileStore, public_address
from cdm_serve.api.plan import Event, Made, Plan, Preview
from cdm_serve.api.schema import ImageAnswer

logger = logging.getLogger(__name__)

ROUTE = "/v1/images/jobs"
# Finished ones; those that are not are bounded by the line.
KEPT = 1000
POLL_SECONDS = "1"


class JobPreview(BaseModel):
    """What a picture of a job will look like: the latest preview of it."""

    image_index: int
    partial_image_index: int
    step: int
    b64_json: str


class JobState(BaseModel):
    """How far a job is."""

    id: str
    object: str = "image.generation.job"
    created: int
    status: Literal["queued", "in_progress", "completed", "failed"]
    pictures_before: int = Field(description="about how many are made first, of all requests")
    previews: list[JobPreview]
    answer: ImageAnswer | None = Field(description="when it is completed")
    error: ErrorFields | None = Field(description="when it has failed")


@dataclass
class Job:
    """``names`` are those of its pictures in the file store."""

    plan: Plan
    ticket: Ticket
    owner: str
    id: str = field(default_factory=lambda: f"job_{secrets.token_urlsafe(18)}")
    created: int = field(default_factory=lambda: int(time.time()))
    previews: dict[int, Preview] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    error: ApiError | None = None
    task: asyncio.Task[None] | None = None


class Jobs:
    """All jobs of this process; finished ones are kept as long as links."""

    def __init__(self, store: FileStore, public_url: str | None) -> None:
        self._store = store
        self._public_url = public_url
        self._running: dict[str, Job] = {}
        self._finished: TTLCache[str, Job] = TTLCache(KEPT, store.seconds)

    async def start(
        self, plan: Plan, ticket: Ticket, events: AsyncGenerator[Event, None], request: Request
    ) -> Response:
        """Make the pictures in the background; a 202 that says where to ask for them."""
        job = Job(plan, ticket, request.state.owner)
        self._running[job.id] = job
        job.task = asyncio.create_task(self._run(job, events))
        headers = {
            "location": public_address(request, self._public_url, f"{ROUTE}/{job.id}"),
            "preference-applied": "respond-async",
            "retry-after": POLL_SECONDS,
        }
        return JSONResponse(await self._state(job, request), status_code=202, headers=headers)

    async def _run(self, job: Job, events: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Preview):
                        job.previews[event.number] = event
                    elif isinstance(event, Made):
                        name = await self._store.put(event.file, job.plan.output_format)
                        job.previews.pop(event.number, None)
                        job.names.append(name)
                        job.made.append(replace(event, file=b""))
        except Exception as error:
            job.error = api_error(error)
            if job.error.code is None:
                logger.exception("a job failed")
        finally:
            job.ticket.close()
            job.plan = replace(job.plan, tensors={})  # kept long, and large
            if self._running.pop(job.id, None):  # else it was deleted
                self._finished[job.id] = job

    def _find(self, name: str, owner: str) -> Job:
        job = self._running.get(name) or self._finished.get(name)
        if job is None or job.owner != owner:
            raise ApiError(
                f"there is no job {name[:80]!r}: finished ones are kept for "
                f"{self._store.seconds / 60:g} minutes, none over a restart",
                status=404,
            )
        return job

    async def _state(self, job: Job, request: Request) -> dict[str, Any]:
        """A ``JobState``."""
        status, ahead, answer = "in_progress", job.ticket.ahead, None
        if job.error is not None:
            status = "failed"
        elif len(job.made) == len(job.plan.seeds):
            status, answer = "completed", await self._answer(job, request)
        elif ahead:
            status = "queued"
        return {
            "id": job.id,
            "object": "image.generation.job",
            "created": job.created,
            "status": status,
            "pictures_before": ahead if status == "queued" else 0,
            "previews": [preview_facts(each) for each in job.previews.values()],
            "answer": answer,
            "error": job.error and job.error.body["error"],
        }

    async def _answer(self, job: Job, request: Request) -> dict[str, Any]:
        pictures, urls = [], []
        for made, name in sorted(zip(job.made, job.names, strict=True), key=lambda p: p[0].number):
            file = await self._store.get(name)
            if file is None:
                raise ApiError("the pictures of this job had to make room for others", status=404)
            pictures.append(replace(made, file=file.content))
            urls.append(public_address(request, self._public_url, f"{FILES}/{name}"))
        return image_answer(job.plan, pictures, urls if job.plan.link else [])

    def router(self) -> APIRouter:
        """``GET`` and ``DELETE`` of a job."""
        router = APIRouter()

        @router.get(ROUTE + "/{name}", responses=documented(401, 404, 503), response_model=JobState)
        async def job(name: str, request: Request) -> Response:
            """How far it is; with the pictures when it is completed."""
            found = self._find(name, request.state.owner)
            state = await self._state(found, request)
            return JSONResponse(state, headers={"retry-after": POLL_SECONDS})

        @router.delete(ROUTE + "/{name}", responses=documented(401, 404), status_code=204)
        async def cancel(name: str, request: Request) -> Response:
            """Give up what is not made, and forget it."""
            found = self._find(name, request.state.owner)
            if found.task is not None:
                found.task.cancel()
            self._running.pop(name, None)
            self._finished.pop(name, None)
            return Response(status_code=204)

        # The router's own 405 would name the methods of the first route alone.
        others = ["POST", "PUT", "PATCH", "OPTIONS", "TRACE"]

        @router.api_route(ROUTE + "/{name}", methods=others, include_in_schema=False)
        async def neither(name: str) -> None:
            raise HTTPException(405, headers={"allow": "DELETE, GET"})

        return router


def prefers_job(request: Request) -> bool:
    """Whether to answer with a job, unless the answer is a stream or the picture itself."""
    preferences = request.headers.get("prefer", "").lower().split(",")
    asked = any(each.partition(";")[0].strip() == "respond-async" for each in preferences)
    return asked or request.query_params.get("async") in ("true", "1")
