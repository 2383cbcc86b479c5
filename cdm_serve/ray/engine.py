"""A replica: one Triton with its engine, on its share of a machine."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.settings import Settings
from cdm_serve.triton.protocol import Message
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
        """As ``Supervisor.stream``; when Ray cancels the call, what remains is cancelled."""
        async with aclosing(self._supervisor.stream(model, job)) as answers:
            async for answer in answers:
                yield answer

    async def describe(self, model: str) -> Message:
        """As ``Supervisor.describe``."""
        return await self._supervisor.describe(model)

    async def models(self) -> list[str]:
        """Names of the served models."""
        return list(self._supervisor.models)

    async def __del__(self) -> None:
        """Let Triton finish and end; Ray awaits it before the replica goes."""
        await self._supervisor.stop()
