"""Pictures behind a link: kept in memory for a while, the oldest given up first."""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from cdm_serve.api.encode import OutputFormat
from cdm_serve.api.errors import ApiError, documented

ROUTE = "/v1/images/files"


@dataclass(frozen=True)
class StoredFile:
    """``expires`` is on the monotonic clock."""

    content: bytes
    output_format: OutputFormat
    expires: float


class FileStore:
    """At most ``limit`` bytes, each file for at most ``seconds``. For one event loop."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.size = 0
        self._files: OrderedDict[str, StoredFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def put(self, content: bytes, output_format: OutputFormat) -> str:
        """Keep a file; its name cannot be guessed.

        Raises:
            ApiError: it alone is larger than the store.
        """
        if len(content) > self.limit:
            raise ApiError(
                f"response_format: a picture of {len(content)} bytes is too large to be kept for a "
                "link on this server; ask for b64_json",
                param="response_format",
            )
        now = time.monotonic()
        name = f"{secrets.token_urlsafe(18)}.{output_format}"
        self._files[name] = StoredFile(content, output_format, now + self.seconds)
        self.size += len(content)
        self._trim(now)
        return name

    def get(self, name: str) -> StoredFile | None:
        """The file, unless it expired or had to make room."""
        self._trim(time.monotonic())
        return self._files.get(name)

    @staticmethod
    def seconds_left(file: StoredFile) -> int:
        """How long it may still be had, at most."""
        return max(0, int(file.expires - time.monotonic()))

    def _trim(self, now: float) -> None:
        """All files live equally long, so the oldest is the first to go for either reason."""
        while self._files:
            oldest = next(iter(self._files.values()))
            if self.size <= self.limit and oldest.expires > now:
                return
            self._files.popitem(last=False)
            self.size -= len(oldest.content)


def file_url(request: Request, public_url: str | None, name: str) -> str:
    """The link to a stored file, as the client reaches this server."""
    base = public_url or str(request.base_url)
    return f"{base.rstrip('/')}{ROUTE}/{name}"


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
                code="not_found",
            )
        return Response(
            file.content,
            media_type=f"image/{file.output_format}",
            headers={"cache-control": f"private, max-age={store.seconds_left(file)}, immutable"},
        )

    return router
