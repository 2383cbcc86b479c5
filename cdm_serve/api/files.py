"""Pictures behind a link: kept in memory for a while, those not looked at given up first."""

import secrets
import time
from dataclasses import dataclass

from cachetools import TTLCache
from fastapi import APIRouter, Request
from fastapi.responses import Response

from cdm_serve.api.errors import ApiError, documented
from cdm_serve.api.schema import OutputFormat

ROUTE = "/v1/images/files"


@dataclass(frozen=True)
class StoredFile:
    """``expires`` is on the monotonic clock."""

    content: bytes
    output_format: OutputFormat
    expires: float

    @property
    def seconds_left(self) -> int:
        """How long it may still be had, at most."""
        return max(0, int(self.expires - time.monotonic()))


class FileStore:
    """At most ``limit`` bytes, each file for at most ``seconds``. For one event loop."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.seconds = seconds
        self._files: TTLCache[str, StoredFile] = TTLCache(
            limit, seconds, getsizeof=lambda file: len(file.content)
        )

    @property
    def size(self) -> int:
        """Bytes in use."""
        self._files.expire()
        return int(self._files.currsize)

    def put(self, content: bytes, output_format: OutputFormat) -> str:
        """Keep a file; its name cannot be guessed.

        Raises:
            ApiError: it alone is larger than the store.
        """
        name = f"{secrets.token_urlsafe(18)}.{output_format}"
        expires = time.monotonic() + self.seconds
        try:
            self._files[name] = StoredFile(content, output_format, expires)
        except ValueError:
            raise ApiError(
                f"response_format: a picture of {len(content)} bytes is too large to be kept for a "
                "link on this server; ask for b64_json",
                param="response_format",
            ) from None
        return name

    def get(self, name: str) -> StoredFile | None:
        """The file, unless it expired or had to make room."""
        return self._files.get(name)


def public_address(request: Request, public_url: str | None, path: str) -> str:
    """The whole address of a path, as the client reaches this server."""
    return (public_url or str(request.base_url)).rstrip("/") + path


def files_router(store: FileStore) -> APIRouter:
    """``GET /v1/images/files/{name}``; the name is the permission."""
    router = APIRouter()

    @router.get(ROUTE + "/{name}", response_class=Response, responses=documented(404))
    async def stored_file(name: str) -> Response:
        """A picture that was asked for with ``response_format: url``."""
        file = store.get(name)
        if file is None:
            raise ApiError(
                f"there is no picture {name[:80]!r}: links last {store.seconds / 60:g} minutes, "
                "less when the store is full",
                status=404,
            )
        return Response(
            file.content,
            media_type=f"image/{file.output_format}",
            headers={"cache-control": f"private, max-age={file.seconds_left}, immutable"},
        )

    return router
