"""The scheduler: the stages of many pictures on the parts of one machine.

Each sample carries its own position in its own schedule, so a picture of two steps and one of eight
share a batch, a new one joins at the next step, and a finished one leaves at once.

Who is next: the oldest, where whoever asks for less counts as having come earlier (by ``PATIENCE``
times the duration of the difference). So short ones overtake long ones, but none that came more
than ``OVERTAKEN`` seconds before: admission has promised those when they will be done. What runs
beside what is decided in ``policy``.

Students that share graphs have a scheduler each, which knows its jobs, and threads in common: what
waits for the same graph runs in one batch, whichever student it is for.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cdm_serve.engine.cache import Cache
from cdm_serve.engine.checks import sigmas_of
from cdm_serve.engine.costs import Costs, Curve
from cdm_serve.engine.counters import Counters
from cdm_serve.engine.job import EngineError, Job, Partial, Picture, Pixels
from cdm_serve.engine.manifest import DECODERS, Manifest
from cdm_serve.engine.manifest import PICTURE as CONDITION
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.engine.policy import DECODINGS, PICTURE, STAGES, STEP, TEXT, Task, Work, choose
from cdm_serve.engine.sample import Answer, Frame, Known, Sample, partial_steps
from cdm_serve.engine.workers import Following, Workers

PATIENCE = 8.0
OVERTAKEN = 1.0
# An execution will not end that takes so many times as long as it should, and longer than this.
STUCK = 10.0
STUCK_SECONDS = 60.0
# What each stage runs.
COMPONENT = {
    TEXT: "text_encoder",
    PICTURE: "vae_encoder",
    STEP: "transformer",
} | {stage: DECODERS[decoder] for decoder, stage in DECODINGS.items()}
NOT_FINITE = (
    "the model gave values that are no numbers (NaN) for this prompt: its weights are damaged, or "
    "its precision too small for them"
)


class Scheduler:
    """Owns the pipeline and, unless another has them already, the threads that run it."""

    def __init__(
        self,
        pipeline: Pipeline,
        costs: Costs,
        cache_bytes: int = 0,
        beside: "Scheduler | None" = None,
    ) -> None:
        """``beside``: another student's, whose threads and whose memory of prompts are used."""
        self.counters = Counters()
        self._pipeline = pipeline
        self._costs = costs
        self._cache: Cache = Cache(cache_bytes) if beside is None else beside._cache
        self._live: dict[str, Sample] = {}
        self._lock = threading.Lock()
        self._stages = {
            TEXT: self._prepare,
            PICTURE: self._encode,
            STEP: self._advance,
        } | dict.fromkeys(DECODINGS.values(), self._deliver)
        self._preview_decoder = "tiny" if "tiny" in pipeline.manifest.decoders else "full"
        self._workers: Workers = self._start() if beside is None else beside._workers

    def _start(self) -> Workers:
        """Threads for this student and all others beside it."""
        lanes, overlaps = len(self._pipeline.lanes), self._pipeline.overlaps

        def curve(stage: str, sample: Sample) -> Curve:
            costs: Costs = sample.owner._costs
            return costs.curve(stage, "" if stage == TEXT else sample.job.size)

        def graph(stage: str, sample: Sample) -> Hashable:
            manifest: Manifest = sample.owner._pipeline.manifest
            return manifest.identities[COMPONENT[stage]]

        # Without lanes a GPU's streams may overlap, each stage with the others.
        return Workers(
            lanes or (len(STAGES) if overlaps else 1),
            lambda waiting, running: choose(
                waiting, running, lanes, curve, graph, overlaps=overlaps
            ),
            lambda task: task.works[0].sample.owner._stages[task.stage](task),
            self._unwanted,
            lambda work: work.sample.owner._refuse(work),
        )

    def submit(self, key: str, job: Job, answer: Answer) -> None:
        """Queue a job; ``answer`` gets every partial image and then a picture or an error.

        Raises:
            EngineError: the job is not one for this model, or the key is in use.
        """
        sigmas = np.array(sigmas_of(job, self._pipeline.manifest), dtype=np.float32)
        work = self._costs.alone(job.size, job.steps - job.start)
        rank = time.perf_counter() + min(PATIENCE * work, OVERTAKEN)
        sample = Sample(job, partial(self._answer, key, answer), sigmas, rank, self)
        with self._lock:
            if self._live.setdefault(key, sample) is not sample:
                raise EngineError(f"key {key} is in use", "invalid")
        self._workers.put(TEXT, [sample])

    def cancel(self, key: str) -> None:
        """Make no more steps for a job, if it is still there; it is answered with an error."""
        sample = self._live.get(key)
        if sample is not None:
            sample.cancelled = True

    def trouble(self) -> str | None:
        """Why something will never be answered: a thread is gone, or an execution hangs.

        One that takes a minute where it should take a minute is no trouble.
        """
        if not self._workers.alive:
            return "the scheduler has ended"
        now = time.perf_counter()
        for task in self._workers.running():
            seconds, count = now - task.begun, len(task.works)
            costs = task.works[0].sample.owner._costs
            expected = costs.expected(task.stage, task.size, count)
            if seconds > max(STUCK * expected, STUCK_SECONDS):
                what = f"an execution ({task.stage}, {count} at once)"
                return f"{what} has taken {seconds:.0f} s, where {expected:.1f} s are usual"
        return None

    def close(self) -> None:
        """Finish what was submitted, then end the threads."""
        self._workers.close()

    def describe(self) -> dict[str, Any]:
        """Costs, load, counters, gauges and histograms."""
        live = list(self._live.values())
        report = self.counters.to_json()
        report["counters"] |= {"cache_hits": self._cache.hits, "cache_misses": self._cache.misses}
        return report | {
            "costs": self._costs.to_json(),
            "waiting": len(live),
            "steps_waiting": sum(sample.steps_left for sample in live),
            "gauges": {"cache_entries": len(self._cache), "cache_bytes": self._cache.size},
        }

    def _unwanted(self, stage: str, work: Work) -> bool:
        """Whether there is nothing to do for it any more.

        Decoding is not what a deadline ends, and a preview of what is cancelled is simply not made.
        """
        sample = work.sample
        ends = stage not in DECODINGS.values() and sample.expired
        return sample.over or sample.cancelled or ends

    def _refuse(self, work: Work) -> None:
        """Answer for what is unwanted, unless it is still to be found as a sample with steps."""
        sample = work.sample
        if isinstance(work, Frame) and sample.steps_left:
            return
        if sample.cancelled:
            error = EngineError("cancelled", "cancelled")
        else:
            error = EngineError("the deadline has passed", "expired")
        if sample.send(error):
            self.counters.add("steps_saved", sample.steps_left)

    def _answer(self, key: str, answer: Answer, what: Partial | Picture | EngineError) -> None:
        """Count it and pass it on; after the last answer the sample is forgotten."""
        if isinstance(what, Partial):
            self.counters.add("partials")
        else:
            self._live.pop(key, None)
            self.counters.add("pictures" if isinstance(what, Picture) else what.kind)
        answer(what)

    def _prepare(self, task: Task) -> Following:
        """Prompts and noise; of a prompt that is known, and of noise, there is no waiting."""
        begin = time.perf_counter()
        batch = [work.sample for work in task.works]
        conditions = self._conditions(task, [sample.job for sample in batch])
        kinds = {(sample.job.size, sample.owner) for sample in batch}
        for size, owner in kinds:
            same = [each for each in batch if (each.job.size, each.owner) == (size, owner)]
            noises = owner._pipeline.noises([sample.job.seed for sample in same], size)
            for sample, noise in zip(same, noises, strict=True):
                sample.latents = noise
        end = time.perf_counter()
        for sample, condition in zip(batch, conditions, strict=True):
            sample.condition = condition
            sample.record("queue", sample.arrived, begin)
            sample.record("text", begin, end)
            sample.owner.counters.observe("queue_seconds", begin - sample.arrived)
        edits = [sample for sample in batch if "picture" in sample.job.tensors]
        return [(PICTURE, edits), (STEP, [sample for sample in batch if sample not in edits])]

    def _encode(self, task: Task) -> Following:
        """The latents of a picture that came in, with the noise of the sample's first sigma."""
        begin = time.perf_counter()
        pipeline = self._on(task)
        for sample in (work.sample for work in task.works):
            pixels, mask = map(sample.job.tensors.get, ("picture", "mask"))
            assert pixels is not None
            key = pipeline.manifest.identities[COMPONENT[PICTURE]], _digest(pixels)
            if (latents := self._cache.get(key)) is None:
                latents = pipeline.encode_picture(pixels)
                self._cache.put(key, latents)
                self._spent("picture_seconds", task, 1, begin)
            noise = sample.latents
            rows = latents[None], noise[None]
            sample.latents = pipeline.noised(*rows, sample.sigmas[sample.step, None])[0]
            if mask is not None:
                free = pipeline.free(mask)
                sample.known = Known(*rows, *map(pipeline.to_device, (free, 1 - free)))
            if pipeline.manifest.needs_picture:
                embeds = sample.condition.embeds | {CONDITION: latents}
                sample.condition = replace(sample.condition, embeds=embeds)
            sample.record("picture", begin, time.perf_counter())
        return [(STEP, task.works)]

    def _conditions(self, task: Task, jobs: list[Job]) -> list[Condition]:
        """Remembered, or encoded in one batch; with a picture each by itself."""
        manifest = self._pipeline.manifest
        encoder, needs_picture = manifest.identities[COMPONENT[TEXT]], manifest.needs_picture
        keys: list[Hashable] = [
            (encoder, _prompt_key(job) if needs_picture else job.prompt) for job in jobs
        ]
        found: dict[Hashable, Condition] = {}
        missing: dict[Hashable, Job] = {}
        for key, job in dict(zip(keys, jobs, strict=True)).items():
            if (condition := self._cache.get(key)) is None:
                missing[key] = job
            else:
                found[key] = condition
        parts = [[key] for key in missing] if needs_picture else [[*missing]] if missing else []
        for part in parts:
            begin = time.perf_counter()
            images = missing[part[0]].tensors["picture"][None] if needs_picture else None
            encoded = self._on(task).encode([missing[key].prompt for key in part], images)
            self._spent("text_seconds", task, len(part), begin)
            for key, condition in zip(part, encoded, strict=True):
                self._cache.put(key, condition)
                found[key] = condition
        return [found[key] for key in keys]

    def _advance(self, task: Task) -> Following:
        """One Euler step of each sample."""
        begin = time.perf_counter()
        pipeline = self._on(task)
        batch = [work.sample for work in task.works]
        sigma = np.stack([sample.sigmas[sample.step] for sample in batch])
        following = np.stack([sample.sigmas[sample.step + 1] for sample in batch])
        latents = pipeline.stack([sample.latents for sample in batch])
        velocity = pipeline.velocity(latents, sigma, [sample.condition for sample in batch])
        moved = pipeline.move(latents, following - sigma, velocity)
        frames: dict[str, list[Frame]] = {decoder: [] for decoder in DECODINGS}
        for row, sample in enumerate(batch):
            rows = slice(row, row + 1)
            sample.latents = moved[row]
            if (known := sample.known) is not None:
                given = pipeline.noised(known.picture, known.noise, following[rows])
                sample.latents = (known.free * moved[rows] + known.rest * given)[0]
            sample.step += 1
            sample.batches.append(len(batch))
            job, made = sample.job, len(sample.batches)
            partials = partial_steps(job.steps - job.start, job.partials)
            if sample.step == job.steps:
                frames[job.decoder].append(Frame(sample, sample.latents, made, None))
            elif made in partials:
                # The student's own x0, where a straight line from here would end.
                foreseen = pipeline.move(latents[rows], -sigma[rows], velocity[rows])[0]
                frame = Frame(sample, foreseen, made, partials.index(made))
                frames[self._preview_decoder].append(frame)
        end = self._spent("step_seconds", task, len(batch), begin)
        for sample in batch:
            sample.record("steps", begin, end)
        for owner, count in Counter(sample.owner for sample in batch).items():
            owner.counters.add("executions")
            owner.counters.add("steps", count)
            owner.counters.observe("batch_size", len(batch))
        decodings = [(stage, frames[decoder]) for decoder, stage in DECODINGS.items()]
        return [*decodings, (STEP, [sample for sample in batch if sample.steps_left])]

    def _deliver(self, task: Task) -> Following:
        """Pixels of each frame, and its answer."""
        begin = time.perf_counter()
        pipeline = self._on(task)
        frames = [work for work in task.works if isinstance(work, Frame)]
        latents = pipeline.stack([frame.latents for frame in frames])
        decoder = next(name for name, stage in DECODINGS.items() if stage == task.stage)
        images = pipeline.decode(latents, decoder)
        end = self._spent(f"{task.stage}_seconds", task, len(frames), begin)
        for frame, image, finite in zip(frames, images, pipeline.finite(latents), strict=True):
            sample = frame.sample
            tensors = sample.job.tensors
            if "mask" in tensors:
                image = np.where(tensors["mask"][..., None], image, tensors["picture"])
            if not finite:
                sample.send(EngineError(NOT_FINITE, "not_finite"))
            elif frame.index is not None:
                sample.record("partials", begin, end)
                sample.send(Partial(image, frame.index, frame.step))
            else:
                sample.record("decode", begin, end)
                sample.send(Picture(image, sample.report()))
        return []

    def _on(self, task: Task) -> Pipeline:
        """The pipeline where the task runs."""
        return self._pipeline if task.lane is None else self._pipeline.lanes[task.lane]

    def _spent(self, histogram: str, task: Task, batch: int, begin: float) -> float:
        """An execution has ended, now: count it, for each student by its share, and learn of it."""
        end = time.perf_counter()
        for owner, count in Counter(work.sample.owner for work in task.works).items():
            owner.counters.observe(histogram, count / len(task.works) * (end - begin))
        narrow = task.lane is not None
        self._costs.observe(task.stage, task.size, batch, end - begin, narrow=narrow)
        return end


def _digest(pixels: Pixels) -> bytes:
    """Of a picture, for the cache."""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def _prompt_key(job: Job) -> bytes:
    """Of a prompt with its picture."""
    return job.prompt.encode() + b"\0" + _digest(job.tensors["picture"])
