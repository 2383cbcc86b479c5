"""``GET /``: the playground, three files that need nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

PATHS = {
    "/": "playground.html",
    "/playground.css": "playground.css",
    "/playground.js": "playground.js",
}
HEADERS = {
    # Asked for each time and answered by the ETag, so that an update is seen at once.
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def playground_router() -> APIRouter:
    """The page, and its style and its script beside it."""
    folder = StaticFiles(directory=str(files("cdm_serve").joinpath("playground")))
    router = APIRouter()
    for path, name in PATHS.items():
        router.add_route(path, _file(folder, name), include_in_schema=False)
    return router


def _file(folder: StaticFiles, name: str) -> Callable[[Request], Awaitable[Response]]:
    async def file(request: Request) -> Response:
        response = await folder.get_response(name, request.scope)
        response.headers.update(HEADERS)
        return response

    return file
