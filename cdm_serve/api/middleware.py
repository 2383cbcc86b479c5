"""What holds for every request on every route: an id, a key, a limit on the body, a log line."""

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdm_serve.api.auth import Keys
from cdm_serve.api.edits import ROUTES as UPLOADS
from cdm_serve.api.errors import CLIENT_LEFT, ApiError
from cdm_serve.api.files import ROUTE as FILES
from cdm_serve.api.limits import RateLimits
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.proxies import before_proxies, is_known, known_hosts
from cdm_serve.log import REQUEST_ID
from cdm_serve.settings import Settings

logger = logging.getLogger(__name__)
access = logging.getLogger("cdm_serve.access")

BODY_SECONDS = 30.0
GIVEN_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
ROUTES = (
    *("/v1/images/generations", *UPLOADS, "/v1/images/files/", "/v1/images/jobs/"),
    *("/v1/models", "/sdapi/v1/txt2img"),
)


class RequestMiddleware:
    """Wraps the whole application, its own error handling included."""

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys, limits: RateLimits, metrics: Metrics
    ) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._hosts = known_hosts(settings, guarded=keys.needed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope, path = before_proxies(scope, self._settings)
        method = scope["method"]
        if method == "HEAD":
            scope["method"] = "GET"
        given = headers.get("x-request-id", "")
        request_id = given if GIVEN_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        owner = self._keys.owner(headers.get("authorization"))
        scope.setdefault("state", {})["owner"] = owner
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = request_id
                if owner is not None and path.startswith("/v1/"):
                    answer.update(await self._limits.headers(owner))
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        begin = time.perf_counter()
        token = REQUEST_ID.set(request_id)
        try:
            refusal = self._refusal(path, owner, headers)
            if refusal is not None:
                await refusal.response()(scope, receive, send_with_id)
            else:
                await self._app(scope, self._limited(receive, path), send_with_id)
        except Exception:
            # Starlette has answered before it raised; only the log still needs to know.
            logger.exception("%s failed on %s %s", request_id, method, path)
            if status is None:
                raise
        finally:
            seconds = time.perf_counter() - begin
            self._observe(scope, method, path, status or CLIENT_LEFT, seconds)
            REQUEST_ID.reset(token)

    def _refusal(self, path: str, owner: str | None, headers: Headers) -> ApiError | None:
        """What can be answered before the body is read."""
        host = headers.get("host", "")
        if not is_known(host, self._hosts):
            return ApiError(
                f"host: {host[:80]!r} is not known here: start cdm-serve with --allowed-host NAME",
                code="unknown_host",
            )
        if owner is None and _needs_key(path):
            return ApiError(
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit(path):
            return ApiError(self._too_large(path), status=413)
        return None

    def _limit(self, path: str) -> int:
        """Bytes of a body."""
        uploads = path in UPLOADS
        return self._settings.upload_limit if uploads else self._settings.body_limit

    def _limited(self, receive: Receive, path: str) -> Receive:
        """A body without a declared length is counted as it comes; one that drips is cut off."""
        received = 0
        until = time.monotonic() + BODY_SECONDS
        whole = False

        async def limited() -> Message:
            nonlocal received, whole
            try:
                async with asyncio.timeout(None if whole else until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took over {BODY_SECONDS:g} s") from None
            received += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if received > self._limit(path):
                raise HTTPException(413, self._too_large(path))
            return message

        return limited

    def _too_large(self, path: str) -> str:
        return f"the body is larger than {self._limit(path)} bytes"

    def _observe(self, scope: Scope, method: str, path: str, status: int, seconds: float) -> None:
        """Count it, and log it."""
        # Paths as clients make them up would be labels without end.
        route = next((known.rstrip("/") for known in ROUTES if path.startswith(known)), "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        facts = {
            "method": method,
            "path": path,
            "status": status,
            "milliseconds": round(1e3 * seconds, 3),
            "owner": scope["state"]["owner"],
            "client": (scope.get("client") or [None])[0],
        }
        access.info("%s %s %d", method, path, status, extra=facts)


def _needs_key(path: str) -> bool:
    """The API, but not links to pictures: their names are secrets themselves."""
    return path.startswith(("/v1/", "/sdapi/")) and not path.startswith(FILES)
