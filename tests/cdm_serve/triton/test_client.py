"""Straight to the shared server's Triton, without the gateway."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import STUB

from cdm_serve.backend import BackendError, BackendLost
from cdm_serve.engine.card import ModelCard
from cdm_serve.engine.job import Job, Partial
from cdm_serve.triton.client import TritonClient
from cdm_serve.triton.processes import alive
from cdm_serve.triton.protocol import generate_message, job_of

JOB = {"prompt": "x", "seed": 1, "steps": 4, "size": "64x64"}
PIXEL = {"dtype": "uint8", "shape": [1, 1, 3]}


@pytest.fixture
def address(server):
    return server.triton_address()


def with_client(address, use):
    async def run():
        client = TritonClient(address)
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(run(), 120))


async def answers(client, job):
    return [answer async for answer in client.stream("tiny", job)]


async def picture(client, job):
    return (await answers(client, job))[-1]


async def settled(client):
    """The description once nothing is under way."""
    while True:
        report = await client.describe("tiny")
        if not report["waiting"]:
            return report
        await asyncio.sleep(0.01)


def draw_jobs(count, seed):
    draw = random.Random(seed)
    return [
        Job(
            prompt=draw.choice(["a fox", "an owl at night", "a very long prompt " * 9]),
            seed=draw.randrange(2**53),
            steps=draw.choice([1, 2, 4, 8]),
            size=draw.choice(["64x64", "96x64"]),
            partials=draw.choice([0, 3]),
            decoder=draw.choice(["full", "tiny"]),
        )
        for _ in range(count)
    ]


def test_describes_the_export(address, manifest):
    async def use(client):
        assert await client.ready()
        assert await client.models() == (["tiny"], {})
        return await client.describe("tiny")

    report = with_client(address, use)
    card = ModelCard.from_json(report["card"])
    there = {"host": "tiny", "pid": card.pid}
    assert card == replace(manifest.card(), **there, costs=card.costs, batches=card.batches)
    assert (card.batches["policy"], card.batches["dropped"]) == ("exact", [])
    assert alive(card.pid)
    assert report["waiting"] == report["steps_waiting"] == 0
    for size in card.sizes:
        costs = card.costs[size]
        assert costs["step"]["1"] > 0
        assert costs["decode"]["1"] > 0
        assert str(costs["batch"]) in costs["step"]
    assert card.costs["text"]["alone"] > 0


def test_one_stream_answers_everyone_with_his_own(address, server):
    """32 mixed requests at once: same bytes as alone, in fewer executions."""
    jobs = draw_jobs(32, seed=1)
    (model,) = [pid for pid, name in server.descendants().items() if name == STUB]

    async def use(client):
        alone = [await answers(client, job) for job in jobs]
        before = await client.describe("tiny")
        os.kill(model, signal.SIGSTOP)  # or a busy machine asks as slowly as it is answered
        try:
            running = [asyncio.create_task(answers(client, job)) for job in jobs]
            await asyncio.sleep(0.5)
        finally:
            os.kill(model, signal.SIGCONT)
        together = await asyncio.gather(*running)
        return alone, together, before["counters"], (await settled(client))["counters"]

    alone, together, before, after = with_client(address, use)
    for one, other, job in zip(alone, together, jobs, strict=True):
        assert len(one) == len(other) == 1 + min(job.partials, job.steps - 1)
        width, height = map(int, job.size.split("x"))
        for each, same in zip(one, other, strict=True):
            assert each.image.shape == (height, width, 3)
            assert np.array_equal(each.image, same.image)
        assert all(isinstance(partial, Partial) for partial in other[:-1])
        assert len(other[-1].report["batches"]) == job.steps
    steps = sum(job.steps for job in jobs)
    assert after["steps"] - before["steps"] == steps
    assert after["executions"] - before["executions"] < 0.75 * steps
    assert after["pictures"] - before["pictures"] == len(jobs)


@pytest.mark.parametrize("leave", ["cancel", "aclose"])
def test_who_leaves_saves_his_steps_and_disturbs_nobody(address, leave):
    jobs = [Job("a fox", seed, 16, "64x64", partials=3) for seed in range(16)]

    async def leaves(client, job):
        async with contextlib.aclosing(client.stream("tiny", job)) as stream:
            async for answer in stream:
                assert isinstance(answer, Partial)
                return

    async def use(client):
        before = await settled(client)
        tasks = [
            asyncio.create_task(
                leaves(client, job)
                if leave == "aclose" and job.seed % 2 == 0
                else answers(client, job)
            )
            for job in jobs
        ]
        if leave == "cancel":
            await asyncio.sleep(0.01)
            for task in tasks[::2]:
                task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        return done, before["counters"], (await settled(client))["counters"]

    for _ in range(20):  # all may have been finished before their cancel came
        done, before, after = with_client(address, use)
        assert all(len(stayed) == 4 for stayed in done[1::2])
        if leave == "cancel":
            assert all(isinstance(left, asyncio.CancelledError) for left in done[::2])
        grown = {name: after[name] - before[name] for name in after}
        assert grown["cancelled"] + grown["pictures"] == 16
        assert grown["steps"] + grown["steps_saved"] == 16 * 16
        if grown["cancelled"] and grown["steps_saved"]:
            return
    pytest.fail("of all who left, nobody's steps were saved")


def test_a_passed_deadline_is_an_error_of_its_own(address):
    async def use(client):
        before = (await client.describe("tiny"))["counters"]
        with pytest.raises(BackendError, match="deadline") as caught:
            await picture(client, Job("a fox", 1, 4, "64x64", deadline=time.time() - 1))
        assert caught.value.kind == "expired"
        assert await picture(client, Job("a fox", 1, 1, "64x64", deadline=time.time() + 100))
        after = (await client.describe("tiny"))["counters"]
        assert after["steps"] - before["steps"] == 1
        assert after["expired"] - before["expired"] == 1

    with_client(address, use)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"command": "generate"}, "prompt is missing"),
        ({"command": "generate", "prompt": "x"}, "seed is missing"),
        ({"command": "generate", "prompt": "x", "seed": "1"}, "seed is '1', of the wrong type"),
        ({"command": "generate", **JOB, "steps": None}, "steps is missing"),
        ({"command": "generate", **JOB, "strength": 0.5}, "strength: unknown to this engine"),
        ({"command": "generate", **JOB, "tensors": {"a": PIXEL}}, "cannot reshape array of size 0"),
        ({"command": "generate", **JOB, "tensors": {"a": {}}}, "bad message: KeyError: 'dtype'"),
        ({"command": "cancel"}, "key is missing"),
        ({"command": "dance"}, "command 'dance' is unknown"),
        ([1, 2], "no JSON object"),
    ],
)
def test_errors_are_answers(address, message, complaint):
    async def use(client):
        with client._ask("tiny", message) as answers:
            raise await answers.get()

    with pytest.raises(BackendError, match=complaint) as caught:
        with_client(address, use)
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize(
    ("job", "complaint"),
    [
        (Job("x", 1, 99, "64x64"), "99 steps are not served"),
        (Job("x", 1, 4, "9x9"), "size 9x9 is not served"),
    ],
)
def test_refusals_name_what_is_served(address, job, complaint):
    with pytest.raises(BackendError, match=complaint) as caught:
        with_client(address, lambda client: picture(client, job))
    assert caught.value.kind == "invalid"


def test_an_error_of_triton_itself_fails_its_request_and_no_other(address):
    """On the stream that all share."""

    async def use(client):
        jobs = [Job("a fox", seed, 16, "64x64") for seed in range(64)]
        drawing = asyncio.gather(*(picture(client, job) for job in jobs))
        with pytest.raises(BackendLost, match="nowhere"):
            await client.describe("nowhere")
        assert not drawing.done()
        return await drawing

    assert len(with_client(address, use)) == 64


@pytest.mark.parametrize("command", ["load", "unload"])
def test_a_load_that_takes_too_long_is_given_up(command):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BackendError, match=r"it took longer than 0\.2 seconds"):
            with_client(address, lambda client: getattr(client, command)("tiny", 0.2))


def test_deadlines_hold_whatever_the_clock_of_the_other_machine_says(monkeypatch):
    message, _ = generate_message(Job("a fox", 1, 1, "64x64", deadline=time.time() + 30))
    there = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: there)
    assert job_of(message, None).deadline == pytest.approx(there + 30, abs=1)


def test_nobody_listening_is_one_clear_error():
    async def use(client):
        assert not await client.ready()
        with pytest.raises(BackendLost, match="connection to Triton broke"):
            await client.describe("tiny")

    with_client("127.0.0.1:9", use)
