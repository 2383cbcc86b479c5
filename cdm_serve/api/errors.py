"""Every failure in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from cdm_serve.backend import BackendError, BackendLost

CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
MEANINGS = {
    400: "a field, or the body, is not what it must be; the error names it",
    401: "the key is missing or wrong",
    404: "there is no such thing here",
    408: "the body took too long to arrive",
    413: "the body is too large",
    429: "too much at the moment; Retry-After says when there is room",
    500: "the server or the model failed",
    503: "the model is being loaded or restarted",
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
    """A refusal; ``param`` names the field at fault."""

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
        self.code = code
        self.headers = headers


def error_response(
    message: str,
    *,
    status: int,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer that OpenAI's clients turn into their own exceptions."""
    body = error_body(message, status=status, param=param, code=code)
    return JSONResponse(body, status_code=status, headers=headers)


def error_body(
    message: str, *, status: int, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An ``ErrorAnswer``."""
    kind = "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install_handlers(app: FastAPI) -> None:
    """Answer every exception a route or the router can raise."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error_response(
            str(error),
            status=error.status,
            param=error.param,
            code=error.code,
            headers=error.headers,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(request, error.errors()[0])

    @app.exception_handler(HTTPException)
    async def from_router(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if error.status_code == 400:  # only raised for a body that is no text or nested too deep
            message = "the body is not valid JSON"
        elif error.status_code == 404:
            message = f"there is no {request.url.path} here; the API is POST /v1/images/generations"
        elif error.status_code == 405:
            message = f"{request.method} is not possible on {request.url.path}"
        return error_response(
            message,
            status=error.status_code,
            code=CODES.get(error.status_code),
            headers=error.headers,
        )

    @app.exception_handler(BackendLost)
    @app.exception_handler(BackendError)
    async def failed(request: Request, error: BackendError | BackendLost) -> JSONResponse:
        return await refused(request, as_api_error(error))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response("internal error; the server's log has the details", status=500)


def as_api_error(error: BackendError | BackendLost) -> ApiError:
    """What a client is told of it."""
    if isinstance(error, BackendLost):
        message = f"the model is not available right now ({error}); try again in a moment"
        return ApiError(message, status=503, code="not_ready", headers={"retry-after": "1"})
    if error.kind == "invalid":
        return ApiError(str(error), code="invalid_value")
    if error.kind == "expired":
        # Who allowed too little time would only fail again.
        headers = {"x-should-retry": "false"}
        message = "the time that the request allowed has passed"
        return ApiError(message, status=504, code="deadline_exceeded", headers=headers)
    if error.kind == "full":
        return ApiError(str(error), status=429, code="queue_full", headers={"retry-after": "1"})
    return ApiError(str(error), status=500, code="model_error")


def not_ready(message: str) -> JSONResponse:
    """503 with the hint that waiting helps."""
    return error_response(message, status=503, code="not_ready", headers={"retry-after": "1"})


def _invalid(request: Request, error: dict[str, Any]) -> JSONResponse:
    """The first of pydantic's complaints, in a sentence that names the field."""
    _, *path = error["loc"]
    param = str(path[0]) if path else None
    kind, message = error["type"], error["msg"]
    if kind == "json_invalid":
        reason = error.get("ctx", {}).get("error", "")
        return error_response(f"the body is not valid JSON: {reason}", status=400)
    content_type = request.headers.get("content-type", "")
    if param is None and "json" not in content_type:
        return error_response(
            f"content-type is {content_type or 'missing'}: send application/json", status=400
        )
    if param is None:
        return error_response("the body must be a JSON object", status=400)
    if kind == "extra_forbidden":
        return error_response(
            f"{param}: unknown parameter", status=400, param=param, code="unknown_parameter"
        )
    if kind == "missing":
        return error_response(
            f"{param} is required", status=400, param=param, code="missing_required_parameter"
        )
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return error_response(f"{param}: {message}", status=400, param=param, code="invalid_value")
