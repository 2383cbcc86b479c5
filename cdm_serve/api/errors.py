"""Every failure in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cdm_serve.backend import BackendError, BackendLost

CLIENT_LEFT = 499  # nginx's number for a client that did not wait
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}
MEANINGS = {
    400: "a field, or the body, is not what it must be; the error names it",
    401: "the key is missing or wrong",
    403: "a page of this origin may not send forms here",
    404: "there is no such thing here",
    408: "the body took too long to arrive, or the client allows too little time",
    413: "the body is too large",
    429: "too much at the moment; Retry-After says when there is room",
    500: "the server or the model failed",
    503: "the model is being loaded or restarted, or what else this needs does not answer",
    504: "the deadline that the request came with has passed",
}


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every failure of every route."""

    error: ErrorFields


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's ``responses`` for these failures."""
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in statuses}


class ApiError(Exception):
    """A refusal or a failure as the client is told; ``param`` names the field at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code or CODES.get(status)
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        """An ``ErrorAnswer``."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = TYPES.get(self.status, server)
        fields = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def response(self) -> JSONResponse:
        """The answer that OpenAI's clients turn into their own exceptions."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def too_many(message: str, seconds: float, code: str) -> ApiError:
    """A 429 that says when to come back, as OpenAI's clients read it."""
    milliseconds = max(1, math.ceil(1e3 * seconds))
    headers = {
        "retry-after": str(math.ceil(milliseconds / 1e3)),
        "retry-after-ms": str(milliseconds),
    }
    return ApiError(message, status=429, code=code, headers=headers)


def not_ready(message: str) -> ApiError:
    """A 503 with the hint that waiting helps."""
    return ApiError(message, status=503, code="not_ready", headers={"retry-after": "1"})


def install_handlers(app: FastAPI) -> None:
    """Answer every exception that a route or the router can raise."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            return _of_router(error, request).response()
        return api_error(error).response()

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)  # only the log reads it

    app.add_exception_handler(ClientDisconnect, left)
    for kind in (ApiError, HTTPException, BackendError, BackendLost):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, answer)


def api_error(error: Exception) -> ApiError:
    """What the client is told of an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BackendLost):
        return not_ready(f"the model is not available right now ({error}); try again in a moment")
    if not isinstance(error, BackendError):
        return ApiError("internal error; the server's log has the details", status=500)
    if error.kind == "invalid":
        return ApiError(str(error), code="invalid_value")
    if error.kind == "full":
        return too_many(str(error), 1.0, "queue_full")
    if error.kind == "expired":
        return ApiError(
            "the time that the request allowed has passed",
            status=504,
            code="deadline_exceeded",
            # Who allowed too little time would only fail again.
            headers={"x-should-retry": "false"},
        )
    if error.kind == "not_finite":
        # It would be the same again.
        headers = {"x-should-retry": "false"}
        return ApiError(str(error), status=500, code="not_finite", headers=headers)
    return ApiError(str(error), status=500, code="model_error")


def _of_router(error: HTTPException, request: Request) -> ApiError:
    message = error.detail
    if error.status_code == 404:
        message = f"there is no {request.url.path} here; the API is POST /v1/images/generations"
    elif error.status_code == 405:
        message = f"{request.method} is not possible on {request.url.path}"
    return ApiError(message, status=error.status_code, headers=error.headers)
