import itertools
import random
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from cdm_serve.engine.costs import Costs, Curve
from cdm_serve.engine.job import EngineError, Job, Partial
from cdm_serve.engine.manifest import COMPONENTS
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from cdm_serve.engine.scheduler import Scheduler

# Batches of up to 8 cost as much as one.
FLAT = dict.fromkeys(range(1, 9), 0.001)
LINEAR = {1: 0.001, 2: 0.002}
SIZES = ("64x64", "96x64")
GREY = np.full((64, 64, 3), 127, np.uint8)


def costs(lanes):
    """Of a machine in one piece, or in lanes that are half as fast as all of it."""
    text, *others = (
        Curve(wide, {batch: lanes * spent for batch, spent in wide.items()} if lanes else {}, lanes)
        for wide in (FLAT, FLAT, LINEAR)
    )
    step, decode = (dict.fromkeys(SIZES, each) for each in others)
    return Costs(text, step, decode, decode, decode)


KEYS = map(str, itertools.count())


@pytest.fixture
def scheduler(pipeline):
    scheduler = Scheduler(pipeline, costs(2), cache_bytes=2**20)
    yield scheduler
    scheduler.close()


class Held(Pipeline):
    """A pipeline whose transformer waits for a permit before each execution."""

    def __init__(self, manifest, lanes):
        # Before the lanes are made, which have them in common.
        self.permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        super().__init__(manifest, open_runtime("openvino", "auto"))
        self.lanes = self.lanes[:lanes]

    def velocity(self, latents, sigma, conditions):
        self.begun.release()
        assert self.permits.acquire(timeout=60)
        return super().velocity(latents, sigma, conditions)


@contextmanager
def hold(manifest, lanes):
    pipeline = Held(manifest, lanes)
    scheduler = Scheduler(pipeline, costs(lanes), cache_bytes=2**20)
    yield pipeline, scheduler
    pipeline.permits.release(1000)
    scheduler.close()


@pytest.fixture
def held(manifest):
    """On a machine in one piece."""
    with hold(manifest, lanes=0) as both:
        yield both


def submit(scheduler, job, key=None, partials=None):
    future = Future()

    def answer(what):
        assert not future.done(), "answered twice"
        if isinstance(what, EngineError):
            future.set_exception(what)
        elif isinstance(what, Partial):
            partials.append(what)
        else:
            future.set_result(what)

    scheduler.submit(key or next(KEYS), job, answer)
    return future


def draw_job(draw):
    steps = draw.choice([1, 2, 4, 8, 16])
    size = draw.choice(["64x64", "64x64", "96x64"])
    # One of two pictures, half of it to be painted, or all, or no picture at all.
    width, height = map(int, size.split("x"))
    pixels = np.random.default_rng(draw.randrange(2)).integers(0, 256, (height, width, 3), np.uint8)
    mask = np.arange(width) < np.full((height, 1), width // 2)
    tensors = draw.choice([{}, {}, {"picture": pixels}, {"picture": pixels, "mask": mask}])
    return Job(
        prompt=draw.choice(["a fox", "an owl at night", "a very long prompt " * 9]),
        seed=draw.randrange(2**32),
        steps=steps,
        size=size,
        partials=draw.choice([0, 0, 3]),
        decoder=draw.choice(["full", "tiny"]),
        start=draw.randrange(steps) if tensors else 0,
        tensors=tensors,
    )


def draw_jobs(count, seed=4):
    draw = random.Random(seed)
    return [draw_job(draw) for _ in range(count)]


def euler(pipeline, job):
    """The plain loop: the picture, and what each step foresees."""
    condition, decoders = pipeline.encode([job.prompt]), pipeline.manifest.decoders
    latents = noise = pipeline.noise(job.seed, job.size)[None]
    sigmas = np.array(pipeline.manifest.grids(job.size)[job.steps], np.float32)[job.start :]
    picture, mask = map(job.tensors.get, ("picture", "mask"))
    if picture is not None:
        known = pipeline.encode_picture(picture)[None]
        latents = (1 - sigmas[0]) * known + sigmas[0] * noise
    shown = []
    for sigma, following in itertools.pairwise(sigmas):
        velocity = pipeline.velocity(latents, sigma[None], condition)
        shown.append(pipeline.decode(latents - sigma * velocity, decoders[-1])[0])
        latents = latents + (following - sigma) * velocity
        if mask is not None:
            given = (1 - following) * known + following * noise
            latents = np.where(mask[::4, ::4], latents, given)
    shown.append(pipeline.decode(latents, job.decoder)[0])
    if mask is not None:
        shown = [np.where(mask[..., None], image, picture) for image in shown]
    return shown[-1], shown[:-1]


def test_a_picture_alone_is_the_plain_euler_loop(pipeline, scheduler):
    job = Job("a fox", 7, 4, "64x64")
    picture = submit(scheduler, job).result(60)
    assert np.array_equal(picture.image, euler(pipeline, job)[0])
    report = picture.report
    assert report["batches"] == [1, 1, 1, 1]
    assert set(report["milliseconds"]) == {"queue", "text", "steps", "decode"}
    assert [stage for stage, _, _ in report["spans"]] == ["queue", "text", *["steps"] * 4, "decode"]
    ends = [at + spent for _, at, spent in report["spans"]]
    assert ends == sorted(ends)
    assert abs(report["arrived"] + ends[-1] / 1e3 - time.time()) < 5


def test_a_model_without_a_tiny_decoder_makes_previews_by_the_full_one(manifest):
    components = {name: manifest.components[name] for name in COMPONENTS}
    pipeline = Pipeline(replace(manifest, components=components), open_runtime("openvino", "auto"))
    scheduler = Scheduler(pipeline, costs(2), cache_bytes=2**20)
    assert (manifest.card().decoders, pipeline.manifest.decoders) == (("full", "tiny"), ("full",))
    with pytest.raises(EngineError, match="decoder tiny is not served, only full"):
        submit(scheduler, Job("a fox", 7, 4, "64x64", decoder="tiny"))
    job, received = Job("a fox", 7, 2, "64x64", partials=1), []
    picture = submit(scheduler, job, partials=received).result(60)
    scheduler.close()
    image, (foreseen, _) = euler(pipeline, job)
    assert np.array_equal(picture.image, image)
    assert np.array_equal(received[0].image, foreseen)


def test_mixed_company_changes_no_picture(pipeline, scheduler):
    jobs = draw_jobs(40)
    drawn = [euler(pipeline, job) for job in jobs]
    partials = [[] for _ in jobs]
    futures = [submit(scheduler, *one) for one in zip(jobs, map(str, jobs), partials, strict=True)]
    for future, (image, _) in zip(futures, drawn, strict=True):
        assert np.array_equal(future.result(60).image, image)
    assert {len(job.tensors) for job in jobs} == {0, 1, 2}
    assert scheduler.counters["steps"] == sum(job.steps - job.start for job in jobs)
    assert scheduler.counters["executions"] < scheduler.counters["steps"] / 2
    assert max(max(future.result().report["batches"]) for future in futures) == 8
    assert scheduler._pipeline.lanes, "the pictures of this test were to be made on two lanes"
    for job, received, (_, foreseen) in zip(jobs, partials, drawn, strict=True):
        assert [partial.index for partial in received] == list(
            range(min(job.partials, job.steps - job.start - 1))
        )
        for partial in received:
            assert np.array_equal(partial.image, foreseen[partial.step - 1])


@pytest.mark.parametrize(
    ("steps", "partials", "after"),
    [(4, 3, [1, 2, 3]), (4, 1, [2]), (8, 3, [2, 4, 6]), (2, 3, [1]), (1, 3, []), (16, 2, [5, 10])],
)
def test_partial_images_are_what_the_model_foresees(pipeline, scheduler, steps, partials, after):
    job = Job("an owl", 3, steps, "64x64", partials)
    received = []
    picture = submit(scheduler, job, partials=received).result(60)
    image, foreseen = euler(pipeline, job)
    assert np.array_equal(picture.image, image)
    assert [partial.step for partial in received] == after
    for index, partial in enumerate(received):
        assert partial.index == index
        assert np.array_equal(partial.image, foreseen[partial.step - 1])


def test_a_short_request_overtakes_a_long_one(held):
    pipeline, scheduler = held
    long = submit(scheduler, Job("slow", 1, 16, "64x64"))
    assert pipeline.begun.acquire(timeout=60)
    short = submit(scheduler, Job("fast", 2, 1, "64x64"))
    while scheduler.describe()["steps_waiting"] != 17 or scheduler._workers.waiting("text") != 1:
        time.sleep(0.001)
    pipeline.permits.release(2)
    assert short.result(60).report["batches"] == [2]
    assert not long.done()
    pipeline.permits.release(14)
    assert long.result(60).report["batches"].count(2) == 1


def test_a_size_that_was_not_measured_is_made_in_batches_and_learned(held):
    pipeline, scheduler = held
    first = submit(scheduler, Job("a fox", 1, 1, "64x64"))
    assert pipeline.begun.acquire(timeout=60)
    jobs = [Job("a fox", seed, 2, "72x80") for seed in (2, 3)]
    others = [submit(scheduler, job) for job in jobs]
    pipeline.permits.release(1000)
    assert first.result(60)
    for job, other in zip(jobs, others, strict=True):
        assert other.result(60).report["batches"] == [2, 2]
        assert np.array_equal(other.result().image, euler(pipeline, job)[0])
    assert scheduler.describe()["costs"]["72x80"]["step"]["1"] > 0
    for size in ("72x81", "72x4000"):
        with pytest.raises(EngineError, match="is not served"):
            submit(scheduler, Job("a fox", 1, 1, size))


def test_nobody_is_overtaken_by_what_comes_much_later(held, monkeypatch):
    pipeline, scheduler = held
    monkeypatch.setattr(scheduler._costs, "alone", lambda size, steps: 60.0 * steps)
    jobs = {"long": 16, "short": 1, "another": 1}
    futures = [submit(scheduler, Job("a fox", 1, jobs[key], "64x64"), key) for key in jobs]
    ranks = [scheduler._live[key].rank for key in jobs]
    assert ranks == sorted(ranks)
    pipeline.permits.release(1000)
    assert all(future.result(60) for future in futures)


def test_an_execution_that_hangs_is_known_by_what_is_usual(held, monkeypatch):
    pipeline, scheduler = held
    first = submit(scheduler, Job("a fox", 1, 1, "64x64"))
    assert pipeline.begun.acquire(timeout=60)
    time.sleep(0.05)  # where 1 ms is usual
    assert scheduler.trouble() is None
    monkeypatch.setattr("cdm_serve.engine.scheduler.STUCK_SECONDS", 0.01)
    assert "(step, 1 at once) has taken 0 s, where 0.0 s are usual" in scheduler.trouble()
    pipeline.permits.release()
    assert first.result(60)


def test_no_size_starves_another(held):
    """A long one of one size, then short ones of another: those overtake; it ends all the same."""
    pipeline, scheduler = held
    pipeline.permits.release(1000)
    long = submit(scheduler, Job("slow", 1, 16, "96x64"))
    shorts = []
    while not long.done():
        shorts.append(submit(scheduler, Job("fast", len(shorts), 1, "64x64")))
        assert shorts[-1].result(60)
        assert len(shorts) < 1000
    assert long.result().report["batches"] == [1] * 16


def test_two_pictures_run_side_by_side_and_one_alone_has_the_machine(manifest):
    with hold(manifest, lanes=2) as (pipeline, scheduler):
        first = submit(scheduler, Job("a fox", 1, 2, "64x64"))
        assert pipeline.begun.acquire(timeout=60)
        second = submit(scheduler, Job("an owl", 2, 2, "64x64"))
        # The first has all cores, so the second waits for the end of its step.
        assert not pipeline.begun.acquire(timeout=0.3)
        pipeline.permits.release()
        assert pipeline.begun.acquire(timeout=60)
        assert pipeline.begun.acquire(timeout=60)
        pipeline.permits.release(1000)
        assert first.result(60).report["batches"] == [1, 1]
        assert second.result(60).report["batches"] == [1, 1]


def test_a_cancelled_job_makes_no_more_steps(held):
    pipeline, scheduler = held
    job = submit(scheduler, Job("a fox", 1, 16, "64x64"), key="stop")
    other = submit(scheduler, Job("a fox", 1, 4, "64x64"))
    assert pipeline.begun.acquire(timeout=60)
    scheduler.cancel("stop")
    scheduler.cancel("nobody")
    pipeline.permits.release(5)
    with pytest.raises(EngineError, match="cancelled") as caught:
        job.result(60)
    assert caught.value.kind == "cancelled"
    assert other.result(60)
    assert scheduler.counters["cancelled"] == 1
    # It may have taken part in the one step that had begun.
    assert scheduler.counters["steps_saved"] in (15, 16)
    assert scheduler.counters["steps"] + scheduler.counters["steps_saved"] == 20
    assert scheduler.describe()["waiting"] == 0


def test_an_expired_job_never_starts_a_step(held):
    pipeline, scheduler = held
    busy = submit(scheduler, Job("a fox", 1, 2, "64x64"))
    assert pipeline.begun.acquire(timeout=60)
    late = submit(scheduler, Job("an owl", 1, 4, "64x64", deadline=time.time() + 0.1))
    far = submit(scheduler, Job("an owl", 1, 4, "64x64", deadline=time.time() + 600))
    time.sleep(0.2)
    pipeline.permits.release(5)
    with pytest.raises(EngineError, match="deadline") as caught:
        late.result(60)
    assert caught.value.kind == "expired"
    assert busy.result(60)
    assert far.result(60)
    assert scheduler.counters["expired"] == 1
    assert scheduler.counters["steps_saved"] == 4
    assert scheduler.counters["steps"] == 6


@pytest.mark.parametrize(
    ("job", "complaint"),
    [
        (Job("a fox", 1, 4, "9x9"), "size 9x9 is not served, only 64x64, 96x64"),
        (Job("a fox", 1, 17, "64x64"), "17 steps are not served, only 1, 2"),
        (Job("a fox", 1, 0, "64x64"), "0 steps are not served"),
        (Job("\ud800", 1, 4, "64x64"), "not valid Unicode"),
        (
            Job("a fox", 1, 4, "96x64", tensors={"picture": GREY}),
            r"picture is uint8 of \(64, 64, 3",
        ),
        (Job("a fox", 1, 4, "64x64", tensors={"picture": GREY / 255}), "picture is float64 of"),
        (Job("a fox", 1, 4, "64x64", tensors={"pose": GREY}), "pose is uint8 of .*, unknown"),
        (Job("a fox", 1, 4, "64x64", tensors={"mask": GREY[..., 0] > 9}), "there is none"),
        (Job("a fox", 1, 4, "64x64", start=1), "there is none"),
        (Job("a fox", 1, 4, "64x64", start=4, tensors={"picture": GREY}), "no start 4 among 4"),
    ],
)
def test_refuses_what_it_cannot_make(scheduler, job, complaint):
    with pytest.raises(EngineError, match=complaint) as caught:
        scheduler.submit("key", job, lambda what: pytest.fail("answered"))
    assert caught.value.kind == "invalid"


def test_a_key_is_for_one_job(held):
    _, scheduler = held
    submit(scheduler, Job("a fox", 1, 4, "64x64"), key="mine")
    with pytest.raises(EngineError, match="key mine is in use"):
        submit(scheduler, Job("a fox", 1, 4, "64x64"), key="mine")


class Fragile(Pipeline):
    """A pipeline whose decoder breaks once."""

    broken = False

    def decode(self, latents, decoder="full"):
        if not Fragile.broken:
            Fragile.broken = True
            raise MemoryError("no room for a picture")
        return super().decode(latents, decoder)


def test_a_failure_is_answered_and_the_rest_goes_on(manifest, capsys):
    scheduler = Scheduler(Fragile(manifest, open_runtime("openvino", "auto")), costs(2), 0)
    bad = submit(scheduler, Job("a fox", 1, 4, "64x64"))
    with pytest.raises(EngineError, match="the model failed: MemoryError: no room") as caught:
        bad.result(60)
    assert caught.value.kind == "failed"
    assert submit(scheduler, Job("an owl", 1, 1, "64x64")).result(60).image.shape == (64, 64, 3)
    assert scheduler.counters["failed"] == 1
    assert "Traceback" in capsys.readouterr().err
    scheduler.close()


class Damaged(Pipeline):
    """A pipeline whose weights give NaN for one prompt."""

    def encode(self, prompts, pictures=None):
        conditions = super().encode(prompts, pictures)
        for prompt, condition in zip(prompts, conditions, strict=True):
            if prompt == "a yeti":
                condition.embeds["pooled"] = condition.embeds["pooled"] * np.nan
        return conditions


def test_nan_is_an_error_and_not_a_black_picture(manifest, scheduler):
    damaged = Scheduler(Damaged(manifest, open_runtime("openvino", "auto")), costs(2), 0)
    jobs = [Job(prompt, 1, 3, "64x64") for prompt in ("a fox", "a yeti", "an owl")]
    fox, yeti, owl = (submit(damaged, job) for job in jobs)
    with pytest.raises(EngineError, match=r"no numbers .NaN. for this prompt") as caught:
        yeti.result(60)
    assert caught.value.kind == "not_finite"
    for future, job in ((fox, jobs[0]), (owl, jobs[2])):
        assert np.array_equal(future.result(60).image, submit(scheduler, job).result(60).image)
    assert damaged.counters["not_finite"] == 1
    damaged.close()


def test_what_variants_share_is_booked_to_each_by_its_share(manifest):
    """Three prompts of two students in one execution, which the first to be held lets gather."""
    with hold(manifest, lanes=0) as (pipeline, scheduler):
        encode, shared = pipeline.encode, []

        def encoded(prompts, images=None):
            shared.append(len(prompts))
            time.sleep(0.3)
            return encode(prompts, images)

        pipeline.encode = encoded
        other = Scheduler(pipeline, costs(0), 0, scheduler)
        pipeline.permits.release(1000)
        futures = [submit(scheduler, Job("first", 1, 1, "64x64"))]
        while not shared:
            time.sleep(0.01)
        futures += [submit(scheduler, Job("a fox", 1, 1, "64x64"))]
        futures += [submit(other, Job(f"an owl {k}", 1, 1, "64x64")) for k in range(2)]
        for future in futures:
            future.result(60)
        assert shared == [1, 3]
        reports = [each.describe() for each in (scheduler, other)]
        assert [each["counters"]["steps"] for each in reports] == [2, 2]
        own, others = (each["histograms"] for each in reports)
        assert sum(own["queue_seconds"]["counts"]) == sum(others["queue_seconds"]["counts"]) == 2
        assert [sum(each["text_seconds"]["counts"]) for each in (own, others)] == [2, 1]
        assert others["text_seconds"]["sum"] >= 0.2


def test_close_finishes_what_was_submitted(pipeline):
    scheduler = Scheduler(pipeline, costs(2), cache_bytes=0)
    futures = [submit(scheduler, Job("a fox", seed, 2, "64x64")) for seed in range(20)]
    assert scheduler.trouble() is None
    scheduler.close()
    assert scheduler.trouble() == "the scheduler has ended"
    assert all(future.done() for future in futures)


def test_a_remembered_prompt_gives_the_same_picture(scheduler):
    jobs = [Job(prompt, 5, 2, "64x64") for prompt in ("a fox", "an owl")]
    first = [submit(scheduler, job).result(60).image for job in jobs]
    again = [submit(scheduler, job).result(60).image for job in jobs]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    report = scheduler.describe()
    assert report["counters"]["cache_misses"] == 2
    assert report["counters"]["cache_hits"] == 2
    assert report["gauges"]["cache_entries"] == 2
    assert report["histograms"]["text_seconds"]["sum"] > 0
    assert sum(report["histograms"]["text_seconds"]["counts"]) == 2
