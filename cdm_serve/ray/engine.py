"""A replica: one Triton with its engine, on its share of a machine."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from cdm_serve.backend import BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.settings import Settings
from cdm_serve.triton.supervisor import Supervisor
from cdm_serve.triton.wheel import find_wheel


class Engine:
    """Ready when its Triton is; ends it when Ray ends the replica."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Start Triton on this machine.

        Raises:
            StartError: it did not come up.
        """
        self._supervisor = Supervisor(settings, find_wheel())
        await self._supervisor.start()

    async def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """See ``Backend``; when Ray cancels the call, what remains is cancelled."""
        async with aclosing(self._supervisor.stream(model, job)) as answers:
            async for answer in answers:
                yield answer

    async def describe(self, model: str) -> dict[str, Any]:
        """See ``Backend``."""
        return await self._supervisor.describe(model)

    async def models(self) -> dict[str, ModelCard]:
        """Of the served models, as ``Backend`` has them.

        Raises:
            BackendLost: Triton is being restarted.
        """
        if not self._supervisor.ready:
            raise BackendLost("the model is being loaded")
        return self._supervisor.models

    async def __del__(self) -> None:
        """Let Triton finish and end; Ray awaits it before the replica goes."""
        await self._supervisor.stop()
