"""The scheduler: the stages of many pictures on the parts of one machine.

Each sample carries its own position in its own schedule, so a picture of two steps and one of eight
share a batch, a new one joins at the next step, and a finished one leaves at once.

Who is next: the oldest, where whoever asks for less counts as having come earlier (by ``PATIENCE``
times the duration of the difference). So short ones overtake long ones, but not for ever. What runs
beside what is decided in ``policy``.
"""

import hashlib
import threading
import time
from functools import partial
from typing import Any

import numpy as np

from cdm_serve.engine.cache import Cache
from cdm_serve.engine.costs import Costs
from cdm_serve.engine.counters import Counters
from cdm_serve.engine.job import EngineError, Job, Partial, Picture
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.engine.policy import DECODE, PICTURE, STAGES, STEP, TEXT, Task, Work, choose
from cdm_serve.engine.sample import Answer, Frame, Known, Sample, partial_steps
from cdm_serve.engine.workers import Following, Workers

PATIENCE = 8.0
NOT_FINITE = (
    "the model gave values that are no numbers (NaN) for this prompt: its weights are damaged, or "
    "its precision too small for them"
)


class Scheduler:
    """Owns the pipeline and the threads that run it."""

    def __init__(self, pipeline: Pipeline, costs: Costs, cache_bytes: int) -> None:
        self.counters = Counters()
        self._pipeline = pipeline
        self._costs = costs
        self._cache = Cache(cache_bytes)
        self._live: dict[str, Sample] = {}
        self._lock = threading.Lock()
        self._stages = {
            TEXT: self._prepare,
            PICTURE: self._encode,
            STEP: self._advance,
            DECODE: self._deliver,
        }
        lanes = len(pipeline.lanes)
        # Without lanes a GPU's streams may overlap, each stage with the others.
        self._workers = Workers(
            lanes or (len(STAGES) if pipeline.overlaps else 1),
            lambda waiting, running: choose(
                waiting, running, lanes, costs.curve, overlaps=pipeline.overlaps
            ),
            lambda task: self._stages[task.stage](task),
            self._unwanted,
            self._refuse,
        )

    def submit(self, key: str, job: Job, answer: Answer) -> None:
        """Queue a job; ``answer`` gets every partial image and then a picture or an error.

        Raises:
            EngineError: the job is not one for this model, or the key is in use.
        """
        sigmas = np.array(self._check(job), dtype=np.float32)
        rank = time.perf_counter() + PATIENCE * self._costs.alone(job.size, job.steps - job.start)
        sample = Sample(job, partial(self._answer, key, answer), sigmas, rank)
        with self._lock:
            if self._live.setdefault(key, sample) is not sample:
                raise EngineError(f"key {key} is in use", "invalid")
        self._workers.put(TEXT, [sample])

    def cancel(self, key: str) -> None:
        """Make no more steps for a job, if it is still there; it is answered with an error."""
        sample = self._live.get(key)
        if sample is not None:
            sample.cancelled = True

    @property
    def alive(self) -> bool:
        """Whether all threads are there."""
        return self._workers.alive

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

    def _check(self, job: Job) -> tuple[float, ...]:
        """Its sigmas, if it is one for this model."""
        grids = self._pipeline.manifest.grids(job.size)
        if grids is None:
            sizes = ", ".join(self._pipeline.manifest.sizes)
            raise EngineError(f"size {job.size} is not served, only {sizes}", "invalid")
        if job.steps not in grids:
            served = ", ".join(map(str, sorted(grids)))
            raise EngineError(f"{job.steps} steps are not served, only {served}", "invalid")
        self._check_tensors(job)
        try:
            job.prompt.encode()
        except UnicodeEncodeError as error:
            raise EngineError("the prompt is not valid Unicode", "invalid") from error
        return grids[job.steps]

    def _check_tensors(self, job: Job) -> None:
        width, height = map(int, job.size.split("x"))
        possible = {
            "picture": (np.dtype(np.uint8), (height, width, 3)),
            "mask": (np.dtype(bool), (height, width)),
        }
        for name, tensor in job.tensors.items():
            if possible.get(name) != (tensor.dtype, tensor.shape):
                found = f"{tensor.dtype} of {tensor.shape}"
                raise EngineError(f"tensor {name} is {found}, unknown to this engine", "invalid")
        if "picture" in job.tensors and not self._pipeline.manifest.edits:
            raise EngineError("the model was exported without vae_encoder", "invalid")
        if ("mask" in job.tensors or job.start) and "picture" not in job.tensors:
            raise EngineError("mask and start are for a picture, and there is none", "invalid")
        if not 0 <= job.start < job.steps:
            raise EngineError(f"no start {job.start} among {job.steps} steps", "invalid")

    def _unwanted(self, stage: str, work: Work) -> bool:
        """Whether there is nothing to do for it any more.

        Decoding is not what a deadline ends, and a preview of what is cancelled is simply not made.
        """
        sample = work.sample
        return sample.over or sample.cancelled or (stage != DECODE and sample.expired)

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
        conditions = self._conditions(task, [sample.job.prompt for sample in batch])
        for size in {sample.job.size for sample in batch}:
            same = [sample for sample in batch if sample.job.size == size]
            noises = self._pipeline.noises([sample.job.seed for sample in same], size)
            for sample, noise in zip(same, noises, strict=True):
                sample.latents = noise
        end = time.perf_counter()
        for sample, condition in zip(batch, conditions, strict=True):
            sample.condition = condition
            sample.record("queue", sample.arrived, begin)
            sample.record("text", begin, end)
        self.counters.observe("queue_seconds", *(begin - sample.arrived for sample in batch))
        edits = [sample for sample in batch if "picture" in sample.job.tensors]
        return [(PICTURE, edits), (STEP, [sample for sample in batch if sample not in edits])]

    def _encode(self, task: Task) -> Following:
        """The latents of a picture that came in, with the noise of the sample's first sigma."""
        begin = time.perf_counter()
        pipeline = self._on(task)
        for sample in (work.sample for work in task.works):
            pixels, mask = map(sample.job.tensors.get, ("picture", "mask"))
            assert pixels is not None
            key = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
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
            sample.record("picture", begin, time.perf_counter())
        return [(STEP, task.works)]

    def _conditions(self, task: Task, prompts: list[str]) -> list[Condition]:
        """Remembered, or encoded in one batch."""
        found: dict[str, Condition] = {}
        missing = []
        for prompt in dict.fromkeys(prompts):
            if (condition := self._cache.get(prompt)) is None:
                missing.append(prompt)
            else:
                found[prompt] = condition
        if missing:
            begin = time.perf_counter()
            encoded = self._on(task).encode(missing)
            self._spent("text_seconds", task, len(missing), begin)
            for prompt, condition in zip(missing, encoded, strict=True):
                self._cache.put(prompt, condition)
                found[prompt] = condition
        return [found[prompt] for prompt in prompts]

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
        frames: list[Work] = []
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
                frames.append(Frame(sample, sample.latents, made, None))
            elif made in partials:
                # The student's own x0, where a straight line from here would end.
                foreseen = pipeline.move(latents[rows], -sigma[rows], velocity[rows])[0]
                frames.append(Frame(sample, foreseen, made, partials.index(made)))
        end = self._spent("step_seconds", task, len(batch), begin)
        for sample in batch:
            sample.record("steps", begin, end)
        self.counters.add("executions")
        self.counters.add("steps", len(batch))
        self.counters.observe("batch_size", len(batch))
        return [(DECODE, frames), (STEP, [sample for sample in batch if sample.steps_left])]

    def _deliver(self, task: Task) -> Following:
        """Pixels of each frame, and its answer."""
        begin = time.perf_counter()
        pipeline = self._on(task)
        frames = [work for work in task.works if isinstance(work, Frame)]
        latents = pipeline.stack([frame.latents for frame in frames])
        images = pipeline.decode(latents)
        end = self._spent("decode_seconds", task, len(frames), begin)
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
        """An execution has ended, now: count it and learn from it."""
        end = time.perf_counter()
        self.counters.observe(histogram, end - begin)
        narrow = task.lane is not None
        self._costs.observe(task.stage, task.size, batch, end - begin, narrow=narrow)
        return end
