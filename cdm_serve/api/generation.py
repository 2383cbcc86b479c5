"""Makes the pictures of a plan: pixels from the model, files from a thread."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, suppress

from cdm_serve.api.admission import Ticket, longest_end
from cdm_serve.api.encode import encode_image, provenance_of
from cdm_serve.api.hook import Hook, seen
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.plan import Event, Made, Plan, Preview, Waiting
from cdm_serve.api.signing import Signatory
from cdm_serve.backend import Backend, BackendError, BackendLost
from cdm_serve.engine.job import Job, Picture, Pixels
from cdm_serve.tracing import picture_spans

# A picture whose engine is lost is made again so often: the same job gives the same bytes.
RETRIES = 2
# A death may be seen here before it is seen by those who replace the dead.
PAUSE_SECONDS = 0.3
POLL_SECONDS = 0.05
# A png of so few pixels is written sooner than a thread is woken for it.
SMALL = 64 * 64
# Proxies cut a stream that is silent for long.
WAITING_SECONDS = 2.0
# The last step may end, and the picture be decoded, after the deadline before which it began: so
# many times what both take, and so many seconds.
GRACE = 2.0
GRACE_SECONDS = 1.0


class ImageGenerator:
    """Pictures are encoded in ``executor``, off the event loop, but for small ones."""

    def __init__(
        self,
        backend: Backend,
        executor: Executor,
        metrics: Metrics,
        retry_seconds: float,
        *,
        embed_prompt: bool,
        provenance: bool = False,
        signatory: Signatory | None = None,
        hook: Hook | None = None,
    ) -> None:
        self._backend = backend
        self._executor = executor
        self._metrics = metrics
        self._retry_seconds = retry_seconds
        self._embed_prompt = embed_prompt
        self._provenance = provenance
        self._signatory = signatory
        self._hook = hook

    async def generate(self, plan: Plan, ticket: Ticket) -> AsyncGenerator[Event, None]:
        """Everything that comes of a plan, as it comes; leaving early stops what remains.

        Raises:
            BackendError: the model refused or failed.
            BackendLost: it went away, and again, or did not come back.
        """
        events: asyncio.Queue[Preview | asyncio.Task[Made]] = asyncio.Queue()
        with ticket:
            tasks = [
                asyncio.create_task(self._picture(plan, number, ticket, events.put_nowait))
                for number in range(len(plan.seeds))
            ]
            for task in tasks:
                task.add_done_callback(events.put_nowait)
            try:
                left = len(tasks)
                while left:
                    event: Event | asyncio.Task[Made] = Waiting(ticket.ahead)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(WAITING_SECONDS):
                            event = await events.get()
                    if isinstance(event, asyncio.Task):
                        left -= 1
                        event = event.result()
                    yield event
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _picture(
        self, plan: Plan, number: int, ticket: Ticket, emit: Callable[[Preview], None]
    ) -> Made:
        """One picture, from a further attempt if one was lost."""
        shown: set[int] = set()
        # The engine keeps deadlines itself; this is for one that does not answer at all.
        seconds = None
        if plan.deadline is not None:
            end = GRACE * longest_end(plan.model.costs, plan.size)
            seconds = plan.deadline - time.time() + end + GRACE_SECONDS
        try:
            async with asyncio.timeout(seconds) as limit:
                for _ in range(RETRIES):
                    try:
                        return await self._attempt(plan, number, ticket, emit, shown)
                    except BackendLost:
                        self._metrics.retried.inc()
                        await self._until_back(plan)
                        ticket.interrupted()
                return await self._attempt(plan, number, ticket, emit, shown)
        except TimeoutError:
            if not limit.expired():  # it is the hook's own
                raise
            raise BackendError("the model does not answer", "expired") from None

    async def _attempt(
        self,
        plan: Plan,
        number: int,
        ticket: Ticket,
        emit: Callable[[Preview], None],
        shown: set[int],
    ) -> Made:
        """``shown`` are the previews that were emitted before."""
        seed = plan.seeds[number]
        job = Job(
            prompt=plan.prompt,
            seed=seed,
            steps=plan.steps,
            size=plan.size,
            partials=plan.partials,
            deadline=plan.deadline,
            start=plan.start,
            decoder=plan.decoder,
            tensors=plan.tensors,
        )
        async with aclosing(self._backend.stream(plan.model.id, job)) as answers:
            async for answer in answers:
                if isinstance(answer, Picture):
                    ticket.picture_done()
                    return await self._finish(plan, number, answer)
                if answer.index not in shown:
                    shown.add(answer.index)
                    file = await self._encode(plan, seed, answer.image, preview=True)
                    emit(Preview(file, number, seed, answer.index, answer.step))
        raise BackendLost("the model ended its answer before the picture")

    async def _until_back(self, plan: Plan) -> None:
        until = time.time() + self._retry_seconds
        if plan.deadline is not None:
            until = min(until, plan.deadline)
        await asyncio.sleep(PAUSE_SECONDS)
        while not self._backend.ready:
            if time.time() > until:
                raise BackendLost("the model is being restarted")
            await asyncio.sleep(POLL_SECONDS)
        back = self._backend.models.get(plan.model.id)
        if back is None or back.fingerprint != plan.model.fingerprint:
            raise BackendLost("the model was replaced meanwhile")

    async def _finish(self, plan: Plan, number: int, picture: Picture) -> Made:
        report, begin = picture.report, time.time()
        file = await self._encode(plan, plan.seeds[number], picture.image)
        seconds = time.time() - begin
        self._metrics.encode_seconds.labels(plan.output_format).observe(seconds)
        encode = round(1e3 * seconds, 3)
        spans = report["spans"]
        # Not before the engine was done, also where its clock is ahead of this one.
        after = max([1e3 * (begin - report["arrived"]), *(at + ms for _, at, ms in spans)])
        receipt = {
            "seed": plan.seeds[number],
            "steps": plan.steps,
            "size": plan.size,
            "model": plan.model.id,
            "fingerprint": plan.model.fingerprint,
            "decoder": plan.decoder,
            "policy": plan.model.batches["policy"],
            "batches": report["batches"],
            "milliseconds": report["milliseconds"] | {"encode": encode},
            "spans": [*spans, ("encode", round(after, 3), encode)],
        }
        if plan.edit:
            receipt["strength"] = plan.strength
        picture_spans(report["arrived"], receipt)
        return Made(file, number, receipt, report["tokens"])

    async def _encode(
        self, plan: Plan, seed: int, pixels: Pixels, *, preview: bool = False
    ) -> bytes:
        """The file says all that makes the picture again, the prompt only where that is wanted.

        Nothing in it but a signature depends on the moment, so that equal requests give equal
        bytes.
        """
        facts = {
            "seed": str(seed),
            "steps": str(plan.steps),
            "model": plan.model.id,
            "fingerprint": plan.model.fingerprint,
        }
        if plan.decoder != "full":
            facts["decoder"] = plan.decoder
        if plan.edit:
            facts["strength"] = str(plan.strength)
        # A JPEG has room for 64 KiB of text.
        if self._embed_prompt and len(json.dumps(plan.prompt)) < 60_000:
            facts["prompt"] = plan.prompt
        xmp = provenance_of(plan.model.id, edit=plan.edit) if self._provenance else ""
        told = {"prompt": plan.prompt, "model": plan.model.id, "seed": seed, "steps": plan.steps}

        def make() -> bytes:
            shown = pixels
            if self._hook is not None:
                shown = seen(self._hook, pixels, told | {"preview": preview})
            file = encode_image(shown, plan.output_format, plan.compression, facts, xmp)
            if self._signatory is None or preview:
                return file
            return self._signatory.sign(file, plan.output_format, plan.model.id, edit=plan.edit)

        height, width, _ = pixels.shape
        plain = plan.output_format == "png" and self._hook is None and self._signatory is None
        if plain and height * width <= SMALL:
            return make()
        return await asyncio.get_running_loop().run_in_executor(self._executor, make)
