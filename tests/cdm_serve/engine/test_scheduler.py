import itertools
import random
from concurrent.futures import Future

import numpy as np
import pytest

from cdm_serve.engine.scheduler import EngineError, Job, Scheduler


@pytest.fixture
def scheduler(pipeline):
    scheduler = Scheduler(pipeline, max_batch=8)
    yield scheduler
    scheduler.close()


def submit(scheduler, job):
    future = Future()

    def finish(done):
        assert not future.done(), "answered twice"
        if isinstance(done, EngineError):
            future.set_exception(done)
        else:
            future.set_result(done)

    scheduler.submit(job, finish)
    return future


def draw_jobs(count):
    draw = random.Random(4)
    return [
        Job(
            prompt=draw.choice(["a fox", "an owl at night", "a very long prompt " * 9]),
            seed=draw.randrange(2**32),
            steps=draw.choice([1, 2, 4, 8]),
            size=draw.choice(["64x64", "64x64", "96x64"]),
        )
        for _ in range(count)
    ]


def test_a_picture_alone_is_the_plain_euler_loop(pipeline, scheduler, manifest):
    job = Job("a fox", 7, 4, "64x64")
    picture = submit(scheduler, job).result(60)
    condition = pipeline.encode([job.prompt])
    latents = pipeline.noise(7, "64x64")[None]
    sigmas = np.array(manifest.sigmas["64x64"][4], dtype=np.float32)
    for sigma, following in itertools.pairwise(sigmas):
        velocity = pipeline.velocity(latents, sigma[None], condition)
        latents = latents + (following - sigma) * velocity
    assert np.array_equal(picture.image, pipeline.decode(latents)[0])
    assert picture.report["batches"] == [1, 1, 1, 1]
    assert set(picture.report["milliseconds"]) == {"queue", "text", "steps", "decode"}


def test_mixed_company_changes_no_picture(scheduler):
    jobs = draw_jobs(40)
    alone = [submit(scheduler, job).result(60).image for job in jobs]
    before = scheduler.executions
    together = [future.result(60) for future in [submit(scheduler, job) for job in jobs]]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other.image)
    assert scheduler.executions - before < sum(job.steps for job in jobs) / 3
    assert max(max(picture.report["batches"]) for picture in together) == 8


def test_a_short_request_overtakes_a_long_one(scheduler):
    order = []
    long = submit(scheduler, Job("slow", 1, 16, "64x64"))
    short = submit(scheduler, Job("fast", 2, 1, "64x64"))
    long.add_done_callback(lambda _: order.append("long"))
    short.add_done_callback(lambda _: order.append("short"))
    assert long.result(60).report["batches"].count(2) == 1
    assert short.result(60)
    assert order == ["short", "long"]


@pytest.mark.parametrize(
    ("job", "complaint"),
    [
        (Job("a fox", 1, 4, "8x8"), "size 8x8 is not served, only 64x64, 96x64"),
        (Job("a fox", 1, 17, "64x64"), "17 steps are not served, only 1, 2"),
        (Job("a fox", 1, 0, "64x64"), "0 steps are not served"),
    ],
)
def test_refuses_what_was_not_exported(scheduler, job, complaint):
    with pytest.raises(EngineError, match=complaint):
        scheduler.submit(job, lambda done: pytest.fail("answered"))


def test_a_failure_is_answered_and_the_rest_goes_on(scheduler, capsys):
    good = submit(scheduler, Job("a fox", 1, 8, "64x64"))
    bad = submit(scheduler, Job("\ud800", 1, 4, "64x64"))  # no tokenizer takes a lone surrogate
    with pytest.raises(EngineError, match="the model failed"):
        bad.result(60)
    late = submit(scheduler, Job("an owl", 1, 1, "64x64")).result(60)
    assert late.image.shape == (64, 64, 3)
    assert good.exception(60) is None or "the model failed" in str(good.exception())
    assert "Traceback" in capsys.readouterr().err


def test_close_finishes_what_was_submitted(pipeline):
    scheduler = Scheduler(pipeline, max_batch=2)
    futures = [submit(scheduler, Job("a fox", seed, 2, "64x64")) for seed in range(7)]
    scheduler.close()
    assert all(future.done() for future in futures)
