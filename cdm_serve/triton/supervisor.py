"""Keeps a Triton answering: starts it, watches it, restarts it, and tells the truth about it.

Triton itself does not: when the process of a python model dies, its health stays 200, the model is
never restarted and its requests hang.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.errors import StartError
from cdm_serve.settings import Settings
from cdm_serve.triton.client import TritonClient
from cdm_serve.triton.launcher import TritonProcess, errors_in
from cdm_serve.triton.processes import AT_WORK, alive, cpu_seconds
from cdm_serve.triton.registry import LOST_SECONDS, Registry
from cdm_serve.triton.target import grpc_target
from cdm_serve.triton.wheel import TritonWheel

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LONGEST_PAUSE = 30.0
# A model that is at work may be silent for so many times ``heartbeat_timeout``.
SLOW = 6


class Supervisor:
    """A ``Backend``: the bundled Triton when ``wheel`` is given, else ``settings.triton``."""

    def __init__(
        self, settings: Settings, wheel: TritonWheel | None, device: str | None = None
    ) -> None:
        """``device``: the GPU that the bundled Triton is given, else all that there are."""
        self.ready = False
        self.restarts = 0
        self._settings = settings
        self._wheel = wheel
        self._device = device
        own = settings.model_repository if wheel else None
        self._registry = Registry(own, settings.start_seconds)
        self._process: TritonProcess | None = None
        self._client: TritonClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.models = self._registry.cards

    async def start(self) -> None:
        """Bring Triton up and begin to watch it.

        Raises:
            StartError: it ended or was not ready in time; its log was written to the logger.
        """
        await self._bring_up()
        if self._registry.missing:
            await self._tear_down(graceful=False)
            raise StartError(self._unloaded())
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Let Triton finish what it has, then end it and leave nothing of it."""
        self.ready = False
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._tear_down(graceful=True)

    def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """See ``Backend``."""
        client = self._connected()
        if model not in self.models:
            raise BackendError(f"{model} is no longer served", "invalid")
        return client.stream(self.models[model].host, job, model)

    async def describe(self, model: str) -> dict[str, Any]:
        """See ``Backend``."""
        client = self._connected()
        host = self.models[model].host if model in self.models else model
        return await client.describe(host, model)

    def _connected(self) -> TritonClient:
        if not self.ready or self._client is None:
            raise BackendLost("the model is being loaded")
        return self._client

    async def _bring_up(self) -> None:
        try:
            if self._wheel is not None:
                settings = self._settings
                self._process = TritonProcess(
                    self._wheel,
                    settings.model_repository,
                    settings.triton_log,
                    settings.warm_up_seconds,
                    self._device,
                )
                address = self._process.address
            else:
                assert self._settings.triton is not None
                address = self._settings.triton
            balanced = self._process is None
            self._client = TritonClient(grpc_target(address), balanced=balanced)
            await self._until_up(self._client, address)
            await self._fill(self._client, address)
            if not self.models:
                empty = f"Triton at {address} serves no model: export one first"
                raise StartError(self._unloaded() or empty)
        except BaseException:
            await self._tear_down(graceful=False)
            raise
        self.ready = True

    def _unloaded(self) -> str:
        missing = self._registry.missing.items()
        return "; ".join(f"model {name} cannot be loaded: {reason}" for name, reason in missing)

    async def _until_up(self, client: TritonClient, address: str) -> None:
        deadline = time.monotonic() + self._settings.start_seconds
        lost: set[int] = set()
        look = time.monotonic()
        while not await client.ready():
            if self._process is not None and not self._process.running:
                self._show_log()
                raise StartError("Triton ended while loading the models; its log is above")
            if self._process is not None and time.monotonic() > look:
                before, lost = lost, self._process.lost()
                if lost & before:
                    self._show_log()
                    raise StartError(
                        "the process of a model ended while Triton loaded it; its log is above"
                    )
                look = time.monotonic() + LOST_SECONDS
            if time.monotonic() > deadline:
                self._show_log()
                raise StartError(
                    f"Triton at {address} was not ready within {self._settings.start_seconds:g} "
                    "seconds: check that it is up and that its models load"
                )
            await asyncio.sleep(POLL_SECONDS)

    def _show_log(self) -> None:
        if self._process is not None:
            logger.error("%s", errors_in(self._process.log()))

    async def _fill(self, client: TritonClient, address: str) -> None:
        """A Triton of others may be up and not answer; ours has measured its models by now."""
        try:
            async with asyncio.timeout(self._settings.heartbeat_timeout):
                await self._registry.fill(client)
        except TimeoutError:
            raise StartError(f"a model of Triton at {address} does not answer") from None

    async def _tear_down(self, *, graceful: bool) -> None:
        client, self._client = self._client, None
        process, self._process = self._process, None
        closing = set() if client is None else {asyncio.create_task(client.close())}
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
        assert self._client is not None
        heartbeat = asyncio.create_task(self._beat(self._client))
        lost = set[int] if self._process is None else self._process.lost
        following = asyncio.create_task(self._registry.follow(self._client, lost))
        try:
            while True:
                await asyncio.wait([heartbeat], timeout=POLL_SECONDS)
                reason = self._death()
                if reason is None and heartbeat.done():
                    reason = heartbeat.result()
                if reason is not None:
                    return reason
        finally:
            heartbeat.cancel()
            following.cancel()

    def _death(self) -> str | None:
        """Who died, as the process table says."""
        if self._process is None:
            return None
        if not self._process.running:
            return "Triton ended"
        for card in self.models.values():
            if card.host not in self._registry.changing and not alive(card.pid):
                return f"the process of model {card.id} ended"
        return None

    async def _beat(self, client: TritonClient) -> str:
        """Ask every model again and again; returns what went wrong."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            for name in sorted(self._registry.hosts):
                try:
                    await self._ask(client, name)
                except TimeoutError as error:
                    return str(error)
                except (BackendLost, BackendError) as error:
                    # One that is being replaced or taken away may be gone by now.
                    if name in self._registry.hosts - self._registry.changing:
                        return f"model {name}: {error}"

    async def _ask(self, client: TritonClient, name: str) -> None:
        """Have a model say what it is; one that is only slow has more time for it.

        A restart would make a machine that has too much to do slower still.

        Raises:
            TimeoutError: it does not answer.
            BackendError, BackendLost: see ``TritonClient.describe``.
        """
        timeout = self._settings.heartbeat_timeout
        asking = asyncio.create_task(self._registry.refresh(client, name))
        try:
            for waited in range(1, SLOW + 1):
                begin, used = time.monotonic(), self._used(name)
                if (await asyncio.wait([asking], timeout=timeout))[0]:
                    asking.result()
                    return
                heard = client.heard.get(name, 0.0) > begin
                if not heard and self._used(name) - used < AT_WORK * timeout:
                    break
                logger.warning("model %s is slow: no answer in %g s", name, waited * timeout)
            raise TimeoutError(f"model {name} has not answered for {waited * timeout:g} s")
        finally:
            asking.cancel()

    def _used(self, name: str) -> float:
        """Seconds of the processor that a model of our own Triton has used."""
        card = self.models.get(name)
        return cpu_seconds(card.pid) if card is not None and self._process is not None else 0.0

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
            except (StartError, BackendLost, BackendError) as error:
                logger.error("restart failed: %s; again in %g s", error, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                logger.warning("ready again")
                return
