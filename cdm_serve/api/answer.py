"""What a client gets: JSON, server-sent events, or the picture itself."""

import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cdm_serve.api.errors import api_error
from cdm_serve.api.plan import Event, Made, Plan, Preview, Waiting

logger = logging.getLogger(__name__)

EVENT_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the events back
}


def place(file: bytes, url: str | None) -> dict[str, str]:
    """Where a picture is: at an address, or right here."""
    return {"url": url} if url else {"b64_json": base64.b64encode(file).decode()}


def image_answer(plan: Plan, pictures: list[Made], places: list[dict[str, str]]) -> dict[str, Any]:
    """An ``ImageAnswer``."""
    return {
        "created": int(time.time()),
        "data": [
            {**place, "seed": made.receipt["seed"], "receipt": made.receipt}
            for place, made in zip(places, pictures, strict=True)
        ],
        **_facts(plan),
        "usage": _usage(plan, pictures),
        "warnings": list(plan.warnings),
    }


def raw_answer(plan: Plan, made: Made) -> Response:
    """The file, and its receipt in the headers."""
    headers = {f"x-{name}": str(made.receipt[name]) for name in ("seed", "steps")}
    headers["x-receipt"] = json.dumps(made.receipt)
    return Response(made.file, media_type=f"image/{plan.output_format}", headers=headers)


class EventStream(StreamingResponse):
    """``first`` is the event that was waited for; the rest comes while it is sent.

    FastAPI's own event stream sends its status before there is anything to say.
    """

    def __init__(self, plan: Plan, first: Event, rest: AsyncGenerator[Event, None]) -> None:
        lines = _lines(plan, first, rest)
        super().__init__(lines, media_type="text/event-stream", headers=EVENT_HEADERS)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; whoever leaves stops the rest."""
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def _lines(plan: Plan, first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[str]:
    yield _block(plan, first)
    try:
        async for event in rest:
            yield _block(plan, event)
    except Exception as error:
        # The status has been sent: all that is left is to say it in the stream.
        told = api_error(error)
        if told.code is None:
            logger.exception("a stream failed")
        yield _line({"type": "error", **told.body})


def _block(plan: Plan, event: Event) -> str:
    """An event; or a comment, which clients pass over, while there is none."""
    if isinstance(event, Waiting):
        return f": {event.ahead} pictures before\n\n"
    return _line(_event(plan, event))


def _line(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


def _event(plan: Plan, event: Preview | Made) -> dict[str, Any]:
    """The ``data`` of one event; the client goes by its ``type``."""
    kind = "image_edit" if plan.edit else "image_generation"
    shared = {
        "b64_json": base64.b64encode(event.file).decode(),
        "created_at": int(time.time()),
        **_facts(plan),
        "image_index": event.number,
    }
    if isinstance(event, Preview):
        return {
            "type": f"{kind}.partial_image",
            "partial_image_index": event.index,
            **shared,
            "seed": event.seed,
            "step": event.step,
        }
    return {
        "type": f"{kind}.completed",
        **shared,
        "usage": _usage(plan, [event]),
        "warnings": list(plan.warnings),
        "seed": event.receipt["seed"],
        "receipt": event.receipt,
    }


def preview_facts(preview: Preview) -> dict[str, Any]:
    """A ``JobPreview``."""
    return {
        "image_index": preview.number,
        "partial_image_index": preview.index,
        "step": preview.step,
        "b64_json": base64.b64encode(preview.file).decode(),
    }


def _facts(plan: Plan) -> dict[str, str]:
    """What answers and events alike say of their pictures."""
    return {
        "background": "opaque",
        "output_format": plan.output_format,
        "quality": plan.quality,
        "size": plan.size,
    }


def _usage(plan: Plan, pictures: list[Made]) -> dict[str, Any]:
    """A ``Usage``."""
    tokens = sum(made.tokens for made in pictures)
    positions = plan.positions * len(pictures)
    read = positions if plan.edit else 0
    return {
        "input_tokens": tokens + read,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": read},
        "output_tokens": positions,
        "total_tokens": tokens + read + positions,
    }
