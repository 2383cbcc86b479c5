"""Pictures behind a link and records of jobs in a folder that gateways share, and outlasts them."""

import asyncio
import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

from cdm_serve.api.errors import ApiError
from cdm_serve.api.files import Record, StoredFile, new_name, too_large
from cdm_serve.api.schema import OutputFormat
from cdm_serve.errors import StartError

logger = logging.getLogger(__name__)

# With a dot before it while it is being written. Nothing else in the folder is touched.
NAME = re.compile(rf"\.?[\w-]{{24}}\.({'|'.join(get_args(OutputFormat))})", re.ASCII)
JOB = re.compile(r"\.?job_[\w-]{24}\.json", re.ASCII)
# Room that there must be at start.
PROBE_BYTES = 65536


class FolderStore:
    """At most ``limit`` bytes, the oldest given up first; files are written and read in threads.

    A file expires ``seconds`` after it was written, by the clocks of those who share the folder.
    """

    def __init__(self, folder: Path, limit: int, seconds: float) -> None:
        self.seconds = seconds
        self.size = 0  # of the folder, when this gateway last wrote
        self._folder = folder
        self._limit = limit
        self._failing = False

    async def put(self, content: bytes, output_format: OutputFormat) -> str:
        """See ``FileStore``."""
        if len(content) > self._limit:
            raise too_large(content)
        with self._told():
            return await asyncio.to_thread(self._write, content, new_name(output_format))

    async def get(self, name: str) -> StoredFile | None:
        """See ``FileStore``."""
        if name.startswith(".") or not NAME.fullmatch(name):
            return None
        with self._told():
            return await asyncio.to_thread(self._read, self._folder / name)

    async def write(self, job: str, record: Record, *, new: bool = False) -> bool:
        """See ``FileStore``."""
        with self._told():
            return await asyncio.to_thread(self._note, f"{job}.json", json.dumps(record), new)

    async def read(self, job: str) -> Record | None:
        """See ``FileStore``."""
        name = f"{job}.json"
        if name.startswith(".") or not JOB.fullmatch(name):
            return None
        with self._told():
            return await asyncio.to_thread(self._noted, self._folder / name)

    async def remove(self, job: str) -> None:
        """See ``FileStore``."""
        with self._told():
            await asyncio.to_thread((self._folder / f"{job}.json").unlink, missing_ok=True)

    def _write(self, content: bytes, name: str) -> str:
        self._make_room(len(content))
        with self._unfinished(name, content) as unfinished:
            unfinished.rename(self._folder / name)
        return name

    def _note(self, name: str, text: str, new: bool) -> bool:
        with self._unfinished(name, text.encode()) as unfinished:
            there = new or (self._folder / name).exists()
            if there:
                unfinished.rename(self._folder / name)
            return there

    @contextmanager
    def _unfinished(self, name: str, content: bytes) -> Iterator[Path]:
        """A written file, to be renamed; else it is removed."""
        path = self._folder / f".{name}"
        try:
            path.write_bytes(content)
            yield path
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _noted(self, path: Path) -> Record | None:
        with suppress(FileNotFoundError):
            if self._left(path.stat().st_mtime) > 0:
                record: Record = json.loads(path.read_text(encoding="utf-8"))
                return record
            path.unlink()
        return None

    def _make_room(self, needed: int) -> None:
        """Remove what expired, then the oldest until there is room for so many bytes."""
        found = []
        for path in self._folder.iterdir():
            # Other gateways remove files too.
            with suppress(FileNotFoundError):
                if NAME.fullmatch(path.name):
                    facts = path.stat()
                    found.append((facts.st_mtime, facts.st_size, path))
                elif JOB.fullmatch(path.name) and self._left(path.stat().st_mtime) <= 0:
                    path.unlink()
        self.size = sum(size for _, size, _ in found) + needed
        for written, size, path in sorted(found):
            if self.size <= self._limit and self._left(written) > 0:
                break
            path.unlink(missing_ok=True)
            self.size -= size

    def _read(self, path: Path) -> StoredFile | None:
        try:
            left = self._left(path.stat().st_mtime)
            if left <= 0:
                path.unlink()
                return None
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        (output_format,) = (each for each in get_args(OutputFormat) if path.suffix == f".{each}")
        return StoredFile(content, output_format, time.monotonic() + left)

    def _left(self, written: float) -> float:
        return written + self.seconds - time.time()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures as clients are told of them; the log has the first until one succeeds."""
        try:
            yield
        except OSError as error:
            if not self._failing:
                logger.error("the folder for links %s fails: %s", self._folder, error)
            self._failing = True
            raise ApiError(
                "the pictures behind links cannot be written or read right now; ask for b64_json",
                status=503,
                code="links_unavailable",
            ) from None
        self._failing = False


def check_folder(folder: Path) -> str:
    """That a file can be written there; a word on it.

    Raises:
        StartError: none can.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
    except OSError as error:
        raise StartError(
            f"nothing can be written to --link-folder {folder} ({error.strerror}): name a folder "
            "that is there, may be written to and has room"
        ) from error
    return f"kept in {folder}"
