"""Pictures behind a link, and how far jobs are: kept for a while, in memory or a ``folder``."""

import secrets
import time
from dataclasses import dataclass
from typing import Any, Protocol

from cachetools import TTLCache
from fastapi import APIRouter, Request
from fastapi.responses import Response

from cdm_serve.api.errors import ApiError, documented
from cdm_serve.api.schema import OutputFormat

ROUTE = "/v1/images/files"
# So many jobs are known in memory; those not looked at are forgotten first.
JOBS = 1000

Record = dict[str, Any]


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


class FileStore(Protocol):
    """Keeps files, and records of jobs, each for at most ``seconds``."""

    @property
    def seconds(self) -> float:
        """How long links last, and jobs from when they were last written."""

    @property
    def size(self) -> int:
        """Bytes in use."""

    async def put(self, content: bytes, output_format: OutputFormat) -> str:
        """Keep a file; its name cannot be guessed.

        Raises:
            ApiError: it alone is larger than the store, or cannot be written.
        """

    async def get(self, name: str) -> StoredFile | None:
        """The file, unless it expired or had to make room.

        Raises:
            ApiError: it cannot be read.
        """

    async def write(self, job: str, record: Record, *, new: bool = False) -> bool:
        """Keep what is known of a job; False if another gateway has removed it meanwhile.

        Raises:
            ApiError: it cannot be written.
        """

    async def read(self, job: str) -> Record | None:
        """What was written last, unless it expired or was removed.

        Raises:
            ApiError: it cannot be read.
        """

    async def remove(self, job: str) -> None:
        """Forget a job.

        Raises:
            ApiError: it cannot be removed.
        """


class MemoryStore:
    """At most ``limit`` bytes; those not looked at are given up first. For one event loop."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.seconds = seconds
        self._files: TTLCache[str, StoredFile] = TTLCache(
            limit, seconds, getsizeof=lambda file: len(file.content)
        )
        self._jobs: TTLCache[str, Record] = TTLCache(JOBS, seconds)

    @property
    def size(self) -> int:
        """Bytes in use."""
        self._files.expire()
        return int(self._files.currsize)

    async def put(self, content: bytes, output_format: OutputFormat) -> str:
        """See ``FileStore``."""
        name = new_name(output_format)
        expires = time.monotonic() + self.seconds
        try:
            self._files[name] = StoredFile(content, output_format, expires)
        except ValueError:
            raise too_large(content) from None
        return name

    async def get(self, name: str) -> StoredFile | None:
        """See ``FileStore``."""
        return self._files.get(name)

    async def write(self, job: str, record: Record, *, new: bool = False) -> bool:
        """See ``FileStore``."""
        self._jobs[job] = record
        return True

    async def read(self, job: str) -> Record | None:
        """See ``FileStore``."""
        return self._jobs.get(job)

    async def remove(self, job: str) -> None:
        """See ``FileStore``."""
        self._jobs.pop(job, None)


def new_name(output_format: OutputFormat) -> str:
    """For a file, which whoever knows it may have."""
    return f"{secrets.token_urlsafe(18)}.{output_format}"


def too_large(content: bytes) -> ApiError:
    """Of a file that is larger than the whole store."""
    return ApiError(
        f"response_format: a picture of {len(content)} bytes is too large to be kept for a link on "
        "this server; ask for b64_json",
        param="response_format",
    )


def public_address(request: Request, public_url: str | None, path: str) -> str:
    """The whole address of a path, as the client reaches this server."""
    return (public_url or str(request.base_url)).rstrip("/") + path


def files_router(store: FileStore) -> APIRouter:
    """``GET /v1/images/files/{name}``; the name is the permission."""
    router = APIRouter()

    @router.get(ROUTE + "/{name}", response_class=Response, responses=documented(404, 503))
    async def stored_file(name: str) -> Response:
        """A picture that was asked for with ``response_format: url``."""
        file = await store.get(name)
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
