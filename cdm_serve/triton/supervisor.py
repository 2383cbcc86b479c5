"""Keeps a Triton answering: starts it, watches it, restarts it, and tells the truth about it.

Triton itself does not: when the process of a python model dies, its health stays 200, the model is
never restarted and its requests hang.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings
from cdm_serve.triton.client import TritonClient, TritonError, TritonLost
from cdm_serve.triton.launcher import TritonProcess
from cdm_serve.triton.models import ModelCard
from cdm_serve.triton.wheel import TritonWheel

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LONGEST_PAUSE = 30.0


class Supervisor:
    """One Triton: the bundled one when ``wheel`` is given, else the one at ``settings.triton``."""

    def __init__(self, settings: Settings, wheel: TritonWheel | None) -> None:
        self.models: dict[str, ModelCard] = {}
        self.ready = False
        self.restarts = 0
        self._settings = settings
        self._wheel = wheel
        self._process: TritonProcess | None = None
        self._client: TritonClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring Triton up and begin to watch it.

        Raises:
            StartError: it ended or was not ready in time; its log was written to the logger.
        """
        await self._bring_up()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Let Triton finish what it has, then end it and leave nothing of it."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._tear_down(graceful=True)

    async def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """Partial images and then the picture; see TritonClient.stream."""
        if not self.ready or self._client is None:
            raise TritonLost("the model is being loaded")
        async with contextlib.aclosing(self._client.stream(model, job)) as answers:
            async for answer in answers:
                yield answer

    async def generate(
        self, model: str, prompt: str, seed: int, steps: int, width: int, height: int
    ) -> Picture:
        """One picture; see TritonClient.stream for what is raised."""
        job = Job(prompt, seed, steps, f"{width}x{height}")
        (picture,) = [answer async for answer in self.stream(model, job)]
        assert isinstance(picture, Picture)
        return picture

    async def _bring_up(self) -> None:
        try:
            if self._wheel is not None:
                settings = self._settings
                self._process = TritonProcess(
                    self._wheel, settings.model_repository, settings.triton_log
                )
                address = self._process.address
            else:
                assert self._settings.triton is not None
                address = self._settings.triton
            self._client = TritonClient(address)
            await self._until_ready(self._client, address)
            self.models = {
                name: ModelCard.from_report(name, await self._describe(name))
                for name in await self._client.models()
            }
            if not self.models:
                raise StartError(f"Triton at {address} serves no model: export one first")
        except BaseException:
            await self._tear_down(graceful=False)
            raise
        self.ready = True

    async def _until_ready(self, client: TritonClient, address: str) -> None:
        deadline = time.monotonic() + self._settings.start_seconds
        while not await client.ready():
            if self._process is not None and not self._process.running:
                logger.error("%s", _errors(self._process.log()))
                raise StartError("Triton ended while loading the models; its log is above")
            if time.monotonic() > deadline:
                if self._process is not None:
                    logger.error("%s", _errors(self._process.log()))
                raise StartError(
                    f"Triton at {address} was not ready within {self._settings.start_seconds:g} "
                    "seconds: check that it is up and that its models load"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _tear_down(self, *, graceful: bool) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        closing: set[asyncio.Task[None]] = set()
        if client is not None:
            closing.add(asyncio.create_task(client.close()))
            self._closing |= closing
        if closing and graceful:
            await asyncio.wait(closing, timeout=self._settings.drain_seconds)
        if process is not None:
            await asyncio.to_thread(process.close if graceful else process.kill)
            # With the server gone the stream ends by itself. One to a Triton of others may stay
            # open as long as it hangs: it is left to itself, since cancelling it could crash them.
            if closing:
                await asyncio.wait(closing)

    async def _watch(self) -> None:
        while True:
            reason = await self._until_trouble()
            await self._recover(reason)

    async def _until_trouble(self) -> str:
        """Wait for a death, or for a heartbeat that fails; a death is seen at once."""
        heartbeat = asyncio.create_task(self._beat())
        try:
            while True:
                await asyncio.wait([heartbeat], timeout=POLL_SECONDS)
                reason = self._death() or (heartbeat.result() if heartbeat.done() else None)
                if reason is not None:
                    return reason
        finally:
            heartbeat.cancel()

    def _death(self) -> str | None:
        """Who died, as the process table says."""
        if self._process is None:
            return None
        if not self._process.running:
            return "Triton ended"
        for card in self.models.values():
            if not _alive(card.pid):
                return f"the process of model {card.id} ended"
        return None

    async def _beat(self) -> str:
        """Ask every model again and again; returns what went wrong."""
        timeout = self._settings.heartbeat_timeout
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            for name in self.models:
                try:
                    async with asyncio.timeout(timeout):
                        await self._describe(name)
                except TimeoutError:
                    return f"model {name} has not answered for {timeout:g} s"
                except (TritonLost, TritonError) as error:
                    return str(error)

    async def _recover(self, reason: str) -> None:
        self.ready = False
        self.restarts += 1
        logger.warning("%s; restarting", reason)
        if self._client is not None:
            self._client.fail(reason)
        await self._tear_down(graceful=False)
        pause = 0.5
        while True:
            try:
                await self._bring_up()
            except (StartError, TritonLost, TritonError) as error:
                logger.error("restart failed: %s; again in %g s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                logger.warning("ready again")
                return

    async def _describe(self, name: str) -> dict[str, object]:
        if self._client is None:
            raise TritonLost("not connected")
        return await self._client.describe(name)


def _alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _errors(log: str) -> str:
    """The last lines of Triton's log without its tables and notes."""
    lines = [line for line in log.splitlines() if line and line[0] not in "I+|"]
    return "\n".join(lines[-20:] or log.splitlines()[-20:])
