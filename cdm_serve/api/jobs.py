"""Pictures that are asked for now and fetched later: ``Prefer: respond-async`` and its routes.

What is known of a job is kept where its pictures are: with those behind links. So every gateway
that shares their folder can tell of it and give it up.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cdm_serve.api.admission import Ticket
from cdm_serve.api.answer import image_answer, place, preview_facts
from cdm_serve.api.errors import ApiError, ErrorFields, api_error, documented, not_ready
from cdm_serve.api.files import ROUTE as FILES
from cdm_serve.api.files import FileStore, Record, public_address
from cdm_serve.api.plan import Event, Made, Plan, Preview
from cdm_serve.api.schema import ImageAnswer

logger = logging.getLogger(__name__)

ROUTE = "/v1/images/jobs"
POLL_SECONDS = "1"
# A job of which nothing was written for so long had a gateway that is gone.
LOST_SECONDS = 10.0


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
    """One that is being made here; ``made`` has each picture's name in the file store."""

    plan: Plan
    ticket: Ticket
    owner: str
    id: str = field(default_factory=lambda: f"job_{secrets.token_urlsafe(18)}")
    created: int = field(default_factory=lambda: int(time.time()))
    previews: dict[int, Preview] = field(default_factory=dict)
    made: list[tuple[Made, str]] = field(default_factory=list)
    error: ApiError | None = None
    task: asyncio.Task[None] | None = None


class Jobs:
    """The jobs of this process, and what is known of those of others; all kept as long as links."""

    def __init__(self, store: FileStore, public_url: str | None) -> None:
        self._store = store
        self._public_url = public_url
        self._running: dict[str, Job] = {}

    async def start(
        self, plan: Plan, ticket: Ticket, events: AsyncGenerator[Event, None], request: Request
    ) -> Response:
        """Make the pictures in the background; a 202 that says where to ask for them."""
        job = Job(plan, ticket, request.state.owner)
        record = _record(job)
        await self._store.write(job.id, record, new=True)
        self._running[job.id] = job
        job.task = asyncio.create_task(self._run(job, events))
        headers = {
            "location": public_address(request, self._public_url, f"{ROUTE}/{job.id}"),
            "preference-applied": "respond-async",
            "retry-after": POLL_SECONDS,
        }
        return JSONResponse(await self._state(record, request), status_code=202, headers=headers)

    async def _run(self, job: Job, events: AsyncGenerator[Event, None]) -> None:
        """Every event is written down; some come also while there is nothing to see."""
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Preview):
                        job.previews[event.number] = event
                    elif isinstance(event, Made):
                        name = await self._store.put(event.file, job.plan.output_format)
                        job.previews.pop(event.number, None)
                        job.made.append((replace(event, file=b""), name))
                    if not await self._store.write(job.id, _record(job)):
                        return  # deleted, perhaps by another gateway
        except Exception as error:
            job.error = api_error(error)
            if job.error.code is None:
                logger.exception("a job failed")
            with suppress(ApiError):
                await self._store.write(job.id, _record(job))
        finally:
            job.ticket.close()
            self._running.pop(job.id, None)

    async def _find(self, name: str, owner: str) -> Record:
        job = self._running.get(name)
        record = await self._store.read(name) if job is None else _record(job)
        if record is None or record["owner"] != owner:
            raise ApiError(
                f"there is no job {name[:80]!r}: they are kept for "
                f"{self._store.seconds / 60:g} minutes",
                status=404,
            )
        return record

    async def _state(self, record: Record, request: Request) -> dict[str, Any]:
        """A ``JobState``."""
        state: dict[str, Any] = record["state"]
        if state["status"] == "completed":
            answer = state["answer"]
            places = [await self._place(name, record, request) for name in record["names"]]
            data = [place | item for place, item in zip(places, answer["data"], strict=True)]
            return state | {"answer": answer | {"data": data}}
        if state["status"] != "failed" and time.time() - record["written"] > LOST_SECONDS:
            error = not_ready("the server that made this is gone; ask again").body["error"]
            return state | {"status": "failed", "error": error}
        return state

    async def _place(self, name: str, record: Record, request: Request) -> dict[str, str]:
        file = await self._store.get(name)
        if file is None:
            raise ApiError("the pictures of this job had to make room for others", status=404)
        url = public_address(request, self._public_url, f"{FILES}/{name}")
        return place(file.content, url if record["link"] else None)

    def router(self) -> APIRouter:
        """``GET`` and ``DELETE`` of a job."""
        router = APIRouter()

        @router.get(ROUTE + "/{name}", responses=documented(401, 404, 503), response_model=JobState)
        async def job(name: str, request: Request) -> Response:
            """How far it is; with the pictures when it is completed."""
            record = await self._find(name, request.state.owner)
            state = await self._state(record, request)
            return JSONResponse(state, headers={"retry-after": POLL_SECONDS})

        @router.delete(ROUTE + "/{name}", responses=documented(401, 404, 503), status_code=204)
        async def cancel(name: str, request: Request) -> Response:
            """Give up what is not made, and forget it."""
            await self._find(name, request.state.owner)
            await self._store.remove(name)
            job = self._running.pop(name, None)
            if job is not None and job.task is not None:
                job.task.cancel()
            return Response(status_code=204)

        # The router's own 405 would name the methods of the first route alone.
        others = ["POST", "PUT", "PATCH", "OPTIONS", "TRACE"]

        @router.api_route(ROUTE + "/{name}", methods=others, include_in_schema=False)
        async def neither(name: str) -> None:
            raise HTTPException(405, headers={"allow": "DELETE, GET"})

        return router


def _record(job: Job) -> Record:
    """What is known of it; in ``state``, a ``JobState``, it is not said where the pictures are."""
    status, ahead, answer = "in_progress", job.ticket.ahead, None
    made = sorted(job.made, key=lambda each: each[0].number)
    if job.error is not None:
        status = "failed"
    elif len(made) == len(job.plan.seeds):
        status, answer = (
            "completed",
            image_answer(job.plan, [one for one, _ in made], [{}] * len(made)),
        )
    elif ahead:
        status = "queued"
    return {
        "owner": job.owner,
        "written": time.time(),
        "link": job.plan.link,
        "names": [name for _, name in made],
        "state": {
            "id": job.id,
            "object": "image.generation.job",
            "created": job.created,
            "status": status,
            "pictures_before": ahead if status == "queued" else 0,
            "previews": [preview_facts(each) for each in job.previews.values()],
            "answer": answer,
            "error": job.error and job.error.body["error"],
        },
    }


def prefers_job(request: Request) -> bool:
    """Whether to answer with a job, unless the answer is a stream or the picture itself."""
    preferences = request.headers.get("prefer", "").lower().split(",")
    asked = any(each.partition(";")[0].strip() == "respond-async" for each in preferences)
    return asked or request.query_params.get("async") in ("true", "1")
