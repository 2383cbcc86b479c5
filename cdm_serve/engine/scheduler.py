"""The scheduler: three stages side by side, of which the middle one is a step at a time.

Each sample carries its own position in its own schedule, so a picture of two steps and one of eight
share a batch, a new one joins at the next step, and a finished one leaves at once. Meanwhile other
samples' prompts are encoded and others' latents decoded.

Who is next: the oldest, where whoever asks for less counts as having come earlier (by ``PATIENCE``
times the duration of the difference). So short ones overtake long ones, but not for ever.
"""

import threading
import time
from functools import partial
from typing import Any

import numpy as np

from cdm_serve.engine.cache import PromptCache
from cdm_serve.engine.costs import Costs, best_batch
from cdm_serve.engine.counters import Counters
from cdm_serve.engine.job import EngineError, Job, Partial, Picture
from cdm_serve.engine.pipeline import Condition, Pipeline
from cdm_serve.engine.sample import Answer, Frame, Sample, partial_steps
from cdm_serve.engine.stage import Stage

PATIENCE = 8.0


class Scheduler:
    """Owns the pipeline and the threads that run it."""

    def __init__(self, pipeline: Pipeline, costs: Costs, cache_bytes: int) -> None:
        self.counters = Counters()
        self._pipeline = pipeline
        self._costs = costs
        self._cache = PromptCache(cache_bytes)
        self._live: dict[str, Sample] = {}
        self._lock = threading.Lock()
        self._preparing: Stage[Sample] = Stage(
            "prepare",
            self._prepare,
            lambda size, count: best_batch(costs.text, count),
            self._wanted,
        )
        self._stepping: Stage[Sample] = Stage(
            "step",
            self._advance,
            lambda size, count: best_batch(costs.step[size], count),
            self._wanted,
        )
        self._decoding: Stage[Frame] = Stage(
            "decode",
            self._deliver,
            lambda size, count: best_batch(costs.decode[size], count),
            self._visible,
        )

    def submit(self, key: str, job: Job, answer: Answer) -> None:
        """Queue a job; ``answer`` gets every partial image and then a picture or an error.

        Raises:
            EngineError: the job is not one for this model, or the key is in use.
        """
        self._check(job)
        sigmas = np.array(self._pipeline.manifest.sigmas[job.size][job.steps], dtype=np.float32)
        duration = job.steps * self._costs.step[job.size][1]
        rank = time.perf_counter() + PATIENCE * duration
        sample = Sample(job, partial(self._answer, key, answer), sigmas, rank)
        with self._lock:
            if self._live.setdefault(key, sample) is not sample:
                raise EngineError(f"key {key} is in use", "invalid")
        self._preparing.put([sample])

    def cancel(self, key: str) -> None:
        """Make no more steps for a job, if it is still there; it is answered with an error."""
        sample = self._live.get(key)
        if sample is not None:
            sample.cancelled = True

    @property
    def alive(self) -> bool:
        """Whether all threads are there."""
        return all(stage.alive for stage in (self._preparing, self._stepping, self._decoding))

    def close(self) -> None:
        """Finish what was submitted, then end the threads."""
        for stage in (self._preparing, self._stepping, self._decoding):
            stage.close()

    def describe(self) -> dict[str, Any]:
        """Load, counters, gauges and histograms."""
        live = list(self._live.values())
        report = self.counters.to_json()
        report["counters"] |= {"cache_hits": self._cache.hits, "cache_misses": self._cache.misses}
        return report | {
            "waiting": len(live),
            "steps_waiting": sum(sample.steps_left for sample in live),
            "gauges": {"cache_entries": len(self._cache), "cache_bytes": self._cache.size},
        }

    def _check(self, job: Job) -> None:
        grids = self._pipeline.manifest.sigmas.get(job.size)
        if grids is None:
            sizes = ", ".join(self._pipeline.manifest.sizes)
            raise EngineError(f"size {job.size} is not served, only {sizes}", "invalid")
        if job.steps not in grids:
            served = ", ".join(map(str, sorted(grids)))
            raise EngineError(f"{job.steps} steps are not served, only {served}", "invalid")
        try:
            job.prompt.encode()
        except UnicodeEncodeError as error:
            raise EngineError("the prompt is not valid Unicode", "invalid") from error

    def _wanted(self, sample: Sample) -> bool:
        """Whether to make its next step; if not, it is answered."""
        error = None
        if sample.cancelled:
            error = EngineError("cancelled", "cancelled")
        elif sample.expired:
            error = EngineError("the deadline has passed", "expired")
        if error is not None and sample.send(error):
            self.counters.add("steps_saved", sample.steps_left)
        return not sample.over

    def _visible(self, sample: Sample) -> bool:
        """Whether to decode it; while it has steps to make, that is not where it is ended."""
        if sample.cancelled and not sample.steps_left:
            sample.send(EngineError("cancelled", "cancelled"))
        return not (sample.over or sample.cancelled)

    def _answer(self, key: str, answer: Answer, what: Partial | Picture | EngineError) -> None:
        """Count it and pass it on; after the last answer the sample is forgotten."""
        if isinstance(what, Partial):
            self.counters.add("partials")
        else:
            self._live.pop(key, None)
            self.counters.add("pictures" if isinstance(what, Picture) else what.kind)
        answer(what)

    def _prepare(self, batch: list[Sample]) -> None:
        begin = time.perf_counter()
        conditions = self._conditions([sample.job.prompt for sample in batch])
        for sample, condition in zip(batch, conditions, strict=True):
            sample.condition = condition
            sample.latents = self._pipeline.noise(sample.job.seed, sample.job.size)
        end = time.perf_counter()
        for sample in batch:
            sample.record("queue", sample.arrived, begin)
            sample.record("text", begin, end)
        self.counters.observe("queue_seconds", *(begin - sample.arrived for sample in batch))
        self._stepping.put(batch)

    def _conditions(self, prompts: list[str]) -> list[Condition]:
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
            encoded = zip(missing, self._pipeline.encode(missing), strict=True)
            self.counters.observe("text_seconds", time.perf_counter() - begin)
            for prompt, condition in encoded:
                self._cache.put(prompt, condition)
                found[prompt] = condition
        return [found[prompt] for prompt in prompts]

    def _advance(self, batch: list[Sample]) -> None:
        """One Euler step of each sample."""
        begin = time.perf_counter()
        sigma = np.stack([sample.sigmas[sample.step] for sample in batch])
        following = np.stack([sample.sigmas[sample.step + 1] for sample in batch])
        latents = self._pipeline.stack([sample.latents for sample in batch])
        velocity = self._pipeline.velocity(latents, sigma, [sample.condition for sample in batch])
        moved = self._pipeline.move(latents, following - sigma, velocity)
        frames = []
        for row, sample in enumerate(batch):
            sample.latents = moved[row]
            sample.step += 1
            sample.batches.append(len(batch))
            partials = partial_steps(sample.job.steps, sample.job.partials)
            if sample.step == sample.job.steps:
                frames.append(Frame(sample, sample.latents, sample.step, None))
            elif sample.step in partials:
                # The student's own x0, where a straight line from here would end.
                rows = slice(row, row + 1)
                foreseen = self._pipeline.move(latents[rows], -sigma[rows], velocity[rows])[0]
                frames.append(Frame(sample, foreseen, sample.step, partials.index(sample.step)))
        end = time.perf_counter()
        for sample in batch:
            sample.record("steps", begin, end)
        self.counters.add("executions")
        self.counters.add("steps", len(batch))
        self.counters.observe("step_seconds", end - begin)
        self.counters.observe("batch_size", len(batch))
        self._decoding.put(frames)
        self._stepping.put(sample for sample in batch if sample.steps_left)

    def _deliver(self, batch: list[Frame]) -> None:
        begin = time.perf_counter()
        images = self._pipeline.decode(self._pipeline.stack([frame.latents for frame in batch]))
        end = time.perf_counter()
        self.counters.observe("decode_seconds", end - begin)
        for frame, image in zip(batch, images, strict=True):
            sample = frame.sample
            if frame.index is not None:
                sample.record("partials", begin, end)
                sample.send(Partial(image, frame.index, frame.step))
            else:
                sample.record("decode", begin, end)
                sample.send(Picture(image, sample.report()))
