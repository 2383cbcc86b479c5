"""What holds for every request on every route: an id, a limit on the body, an answer."""

import logging
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdm_serve.api.errors import CODES, error_response

logger = logging.getLogger(__name__)


class Edge:
    """Wraps the whole application, its own error handling included."""

    def __init__(self, app: ASGIApp, body_limit: int) -> None:
        self._app = app
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._body_limit:
            response = error_response(self._too_large(), status=413, code=CODES[413])
            await response(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, self._limited(receive), send_with_id)
        except Exception:
            # Starlette has answered before it raised; only the log still needs to know.
            logger.exception("%s failed on %s %s", request_id, scope["method"], scope["path"])
            if not started:
                raise

    def _limited(self, receive: Receive) -> Receive:
        """A body without a declared length is counted as it comes."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body_limit:
                raise HTTPException(413, self._too_large())
            return message

        return limited

    def _too_large(self) -> str:
        return f"the body is larger than {self._body_limit} bytes"
