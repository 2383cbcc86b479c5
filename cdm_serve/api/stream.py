"""Pictures as server-sent events, exactly as OpenAI's image streaming has them."""

import base64
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cdm_serve.api.answer import Made, PartialMade, picture_facts, usage
from cdm_serve.api.errors import as_api_error, error_body
from cdm_serve.api.plan import Plan
from cdm_serve.api.studio import Event, Waiting
from cdm_serve.backend import BackendError, BackendLost

logger = logging.getLogger(__name__)

HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the events back
}


class EventStream(StreamingResponse):
    """``first`` is the event that was waited for; the rest comes while it is sent."""

    def __init__(self, plan: Plan, first: Event, rest: AsyncGenerator[Event, None]) -> None:
        super().__init__(_lines(plan, first, rest), media_type="text/event-stream", headers=HEADERS)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; whoever leaves stops the rest."""
        async with aclosing(self._rest):
            await super().__call__(scope, receive, send)


async def _lines(plan: Plan, first: Event, rest: AsyncGenerator[Event, None]) -> Any:
    yield _block(plan, first)
    try:
        async for event in rest:
            yield _block(plan, event)
    except (BackendError, BackendLost) as error:
        told = as_api_error(error)
        yield _line({"type": "error", **error_body(str(told), status=told.status, code=told.code)})
    except Exception:
        # The status has been sent: all that is left is to say it in the stream.
        logger.exception("a stream failed")
        text = "internal error; the server's log has the details"
        yield _line({"type": "error", **error_body(text, status=500)})


def _block(plan: Plan, event: Event) -> str:
    """An event; or a comment, which clients pass over, while there is none."""
    if isinstance(event, Waiting):
        return f": {event.ahead} pictures before\n\n"
    return _line(event_body(plan, event))


def event_body(plan: Plan, event: PartialMade | Made) -> dict[str, Any]:
    """The ``data`` of one event; the client goes by its ``type``."""
    shared = {
        "b64_json": base64.b64encode(event.file).decode(),
        "created_at": int(time.time()),
        **picture_facts(plan),
        "image_index": event.number,
    }
    if isinstance(event, PartialMade):
        return {
            "type": "image_generation.partial_image",
            "partial_image_index": event.index,
            **shared,
            "seed": event.seed,
            "step": event.step,
        }
    return {
        "type": "image_generation.completed",
        **shared,
        "usage": usage(plan, [event.tokens]),
        "seed": event.receipt["seed"],
        "receipt": event.receipt,
    }


def _line(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"
