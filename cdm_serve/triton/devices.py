"""Several GPUs of one machine: a bundled Triton on each, behind one backend."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from cdm_serve.backend import BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.triton.supervisor import Supervisor


class Devices:
    """A ``Backend``: each picture goes where the least work is in flight, and so does its cancel.

    Each device is watched and restarted by itself; the others go on meanwhile.
    """

    def __init__(self, supervisors: Sequence[Supervisor]) -> None:
        self._supervisors = supervisors
        self._work = dict.fromkeys(supervisors, 0)
        self._turns = itertools.cycle(supervisors)

    @property
    def models(self) -> dict[str, ModelCard]:
        """See ``Backend``."""
        return next((each.models for each in self._supervisors if each.ready), {})

    @property
    def ready(self) -> bool:
        """See ``Backend``."""
        return any(each.ready for each in self._supervisors)

    @property
    def restarts(self) -> int:
        """Of all of them."""
        return sum(each.restarts for each in self._supervisors)

    async def start(self) -> None:
        """Bring all up.

        Raises:
            StartError: one did not come up.
        """
        starting = [asyncio.create_task(each.start()) for each in self._supervisors]
        try:
            await asyncio.wait(starting, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            failed = [task for task in starting if task.done() and task.exception()]
            for task in starting:
                task.cancel()
            await asyncio.wait(starting)
        for task in failed:
            task.result()

    async def stop(self) -> None:
        """Let all finish what they have."""
        await asyncio.gather(*(each.stop() for each in self._supervisors))

    async def stream(self, model: str, job: Job) -> AsyncGenerator[Partial | Picture, None]:
        """See ``Backend``."""
        able = [each for each in self._supervisors if each.ready and model in each.models]
        if not able:
            raise BackendLost("the model is being loaded")
        chosen = min(able, key=lambda each: self._work[each])
        width, height = map(int, job.size.split("x"))
        work = job.steps * width * height
        self._work[chosen] += work
        try:
            async with aclosing(chosen.stream(model, job)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._work[chosen] -= work

    async def describe(self, model: str) -> dict[str, Any]:
        """See ``Backend``; one after the other is asked."""
        for each, _ in zip(self._turns, self._supervisors, strict=False):
            if each.ready:
                return await each.describe(model)
        raise BackendLost("the model is being loaded")
