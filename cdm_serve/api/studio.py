"""Makes the pictures of a plan: pixels from the model, files from a thread."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass

from cdm_serve.api.admission import Ticket
from cdm_serve.api.answer import Made, PartialMade
from cdm_serve.api.encode import encode_image
from cdm_serve.api.plan import Plan
from cdm_serve.api.watch import Watch
from cdm_serve.backend import Backend, BackendError, BackendLost
from cdm_serve.engine.job import Job, Partial, Picture, Pixels

POLL_SECONDS = 0.05
# Proxies cut a stream that is silent for long.
HEARTBEAT_SECONDS = 2.0
# The last step may end, and the picture be decoded, after the deadline before which it began.
GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Waiting:
    """Nothing came for a while; ``ahead`` pictures are before the request's."""

    ahead: int


Event = PartialMade | Made | Waiting


class Studio:
    """Pictures are encoded in ``executor``, off the event loop."""

    def __init__(
        self, backend: Backend, executor: Executor, watch: Watch, retry_seconds: float
    ) -> None:
        self._backend = backend
        self._executor = executor
        self._watch = watch
        self._retry_seconds = retry_seconds

    async def make(self, plan: Plan, ticket: Ticket) -> AsyncGenerator[Event, None]:
        """Everything that comes of a plan, as it comes; leaving early stops what remains.

        Raises:
            BackendError: the model refused or failed.
            BackendLost: it went away, came back, and went away again; or did not come back.
        """
        events: asyncio.Queue[PartialMade | asyncio.Task[Made]] = asyncio.Queue()
        with ticket:
            tasks = [
                asyncio.create_task(self._in_time(plan, number, ticket, events.put_nowait))
                for number in range(len(plan.seeds))
            ]
            for task in tasks:
                task.add_done_callback(events.put_nowait)
            try:
                left = len(tasks)
                while left:
                    event: Waiting | PartialMade | asyncio.Task[Made] = Waiting(ticket.ahead)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(HEARTBEAT_SECONDS):
                            event = await events.get()
                    if not isinstance(event, asyncio.Task):
                        yield event
                    else:
                        left -= 1
                        yield event.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_time(
        self, plan: Plan, number: int, ticket: Ticket, emit: Callable[[PartialMade], None]
    ) -> Made:
        """The engine keeps deadlines itself; this is for one that does not answer at all."""
        seconds = None if plan.deadline is None else plan.deadline - time.time() + GRACE_SECONDS
        try:
            async with asyncio.timeout(seconds):
                return await self._picture(plan, number, ticket, emit)
        except TimeoutError:
            raise BackendError("the model does not answer", "expired") from None

    async def _picture(
        self, plan: Plan, number: int, ticket: Ticket, emit: Callable[[PartialMade], None]
    ) -> Made:
        seed = plan.seeds[number]
        job = Job(plan.prompt, seed, plan.steps, plan.size, plan.partials, plan.deadline)
        sent = 0
        async with aclosing(self._answers(plan, job, ticket)) as answers:
            async for answer in answers:
                if isinstance(answer, Picture):
                    ticket.picture_done()
                    return await self._finish(plan, number, answer)
                if answer.index == sent:  # not sent already, before a restart
                    sent += 1
                    file = await self._encode(plan, answer.image, facts(plan, seed))
                    emit(PartialMade(file, number, seed, answer.index, answer.step))
        raise BackendLost("the model ended its answer before the picture")

    async def _finish(self, plan: Plan, number: int, picture: Picture) -> Made:
        begin = time.time()
        seed = plan.seeds[number]
        file = await self._encode(plan, picture.image, facts(plan, seed))
        encode = round(1e3 * (time.time() - begin), 3)
        self._watch.picture(plan, picture.report, begin, encode)
        spans = picture.report["spans"]
        # Not before the engine was done, also where its clock is ahead of this one.
        after = max([1e3 * (begin - picture.report["arrived"]), *(at + ms for _, at, ms in spans)])
        receipt = {
            "seed": seed,
            "steps": plan.steps,
            "size": plan.size,
            "model": plan.model.id,
            "fingerprint": plan.model.fingerprint,
            "batches": picture.report["batches"],
            "milliseconds": picture.report["milliseconds"] | {"encode": encode},
            "spans": [*spans, ("encode", round(after, 3), encode)],
        }
        return Made(file, number, receipt, picture.report["tokens"])

    async def _encode(self, plan: Plan, pixels: Pixels, facts: dict[str, str]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, encode_image, pixels, plan.output_format, plan.compression, facts
        )

    async def _answers(
        self, plan: Plan, job: Job, ticket: Ticket
    ) -> AsyncGenerator[Partial | Picture, None]:
        """The model's, from a second attempt if the first was lost: it gives the same bytes."""
        try:
            async with aclosing(self._backend.stream(plan.model.id, job)) as answers:
                async for answer in answers:
                    yield answer
            return
        except BackendLost:
            self._watch.retried.inc()
        await self._until_back(plan)
        ticket.interrupted()
        async with aclosing(self._backend.stream(plan.model.id, job)) as answers:
            async for answer in answers:
                yield answer

    async def _until_back(self, plan: Plan) -> None:
        until = time.time() + self._retry_seconds
        if plan.deadline is not None:
            until = min(until, plan.deadline)
        while not self._backend.ready:
            if time.time() > until:
                raise BackendLost("the model is being restarted")
            await asyncio.sleep(POLL_SECONDS)
        back = self._backend.models.get(plan.model.id)
        if back is None or back.fingerprint != plan.model.fingerprint:
            raise BackendLost("the model was replaced meanwhile")


def facts(plan: Plan, seed: int) -> dict[str, str]:
    """What the file itself says: all that makes the picture again but the prompt.

    Nothing in it depends on the moment, so that equal requests give equal bytes.
    """
    return {
        "seed": str(seed),
        "steps": str(plan.steps),
        "model": plan.model.id,
        "fingerprint": plan.model.fingerprint,
    }
