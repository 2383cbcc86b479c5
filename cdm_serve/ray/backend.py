"""The engines of a cluster as the API's backend."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.settings import Settings

logger = logging.getLogger(__name__)


class RayBackend:
    """Ray chooses the engine of each request, starts engines and replaces them."""

    def __init__(self, settings: Settings, engines: DeploymentHandle[Any]) -> None:
        self.models: dict[str, ModelCard] = {}
        self.restarts = 0
        self._settings = settings
        self._engines = engines
        self.ready = False  # whether an engine answered when last asked
        self._heard = 0.0  # when an engine last sent anything

    async def watch(self) -> None:
        """Keep up with what the engines serve, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._settings.heartbeat_timeout):
                    await self._look()
            except (TimeoutError, BackendLost, BackendError) as error:
                if self._busy(error):
                    logger.info("the engines have no time to say how they are")
                else:
                    if self.ready:
                        logger.warning("no engine answers: %s", error)
                    self.ready = False
            await asyncio.sleep(self._settings.heartbeat_seconds)

    def _busy(self, error: Exception) -> bool:
        """Whether a question found no place among the requests, of engines that are at work."""
        refused = isinstance(error, TimeoutError) or getattr(error, "kind", None) == "full"
        return refused and time.monotonic() - self._heard < self._settings.heartbeat_timeout

    async def _look(self) -> None:
        with _translated():
            cards = await _answer(self._engines.models.remote())
        self.models.clear()
        self.models.update(cards)
        self.ready = bool(cards)
        self._heard = time.monotonic()

    async def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """See ``Backend``."""
        answers = self._engines.options(stream=True).stream.remote(model, job)
        finished = False
        try:
            with _translated():
                async for answer in answers:
                    finished = isinstance(answer, Picture)
                    self._heard = time.monotonic()
                    yield answer
        except (BackendError, BackendLost):
            finished = True  # there is nothing to cancel, and Ray would raise it once more
            raise
        finally:
            if not finished:
                answers.cancel()

    async def describe(self, model: str) -> dict[str, Any]:
        """See ``Backend``."""
        with _translated():
            report: dict[str, Any] = await _answer(self._engines.describe.remote(model))
            return report


async def _answer(response: DeploymentResponse[Any]) -> Any:
    """A question that nobody waits for any more must not wait among the pictures."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Ray's errors as the API knows them."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, BackendError | BackendLost):
            raise cause from None
        raise BackendLost(str(cause)) from error
    except BackPressureError as error:
        raise BackendError("too many requests wait for an engine", "full") from error
    except (RayError, RayServeException) as error:
        raise BackendLost(f"the engine was lost: {type(error).__name__}") from error
