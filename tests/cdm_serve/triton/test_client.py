"""Straight to the shared server's Triton, without the gateway."""

import asyncio

import numpy as np
import pytest

from cdm_serve.triton.client import TritonClient, TritonError, TritonLost, _text


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

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_describes_the_export(address, manifest):
    async def use(client):
        assert await client.ready()
        assert await client.models() == ["tiny"]
        return await client.describe("tiny")

    report = with_client(address, use)
    assert report["fingerprint"] == manifest.fingerprint
    assert report["sizes"] == ["64x64", "96x64"]
    assert report["max_steps"] == 16


def test_one_stream_answers_everyone_with_his_own(address):
    """16 at once with mixed steps and sizes: same bytes as alone, in fewer executions."""
    sizes = {0: (64, 64), 1: (96, 64)}
    wanted = [(f"fox {i % 3}", i, (1, 2, 4, 8)[i % 4], *sizes[i % 2]) for i in range(16)]

    async def use(client):
        alone = [await client.generate("tiny", *one) for one in wanted]
        before = (await client.describe("tiny"))["executions"]
        together = await asyncio.gather(*(client.generate("tiny", *one) for one in wanted))
        after = (await client.describe("tiny"))["executions"]
        return alone, together, after - before

    alone, together, executions = with_client(address, use)
    for one, other, (*_, steps, width, height) in zip(alone, together, wanted, strict=True):
        assert one.image.shape == (height, width, 3)
        assert np.array_equal(one.image, other.image)
        assert len(other.report["batches"]) == steps
    assert executions < sum(steps for _, _, steps, _, _ in wanted) / 2


def test_who_stops_waiting_disturbs_nobody(address):
    async def use(client):
        tasks = [
            asyncio.create_task(client.generate("tiny", "a fox", seed, 16, 64, 64))
            for seed in range(8)
        ]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = with_client(address, use)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(answer.image.shape == (64, 64, 3) for answer in answers[1::2])


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"command": _text("generate")}, "input prompt is missing"),
        ({"command": _text("generate"), "prompt": _text("x")}, "input seed is missing"),
        ({"command": _text("dance"), "prompt": _text("x")}, "command 'dance' is unknown"),
    ],
)
def test_errors_are_answers(address, arrays, complaint):
    with pytest.raises(TritonError, match=complaint):
        with_client(address, lambda client: client._ask("tiny", arrays))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [(("x", 1, 99, 64, 64), "99 steps are not served"), (("x", 1, 4, 8, 8), "size 8x8 is not")],
)
def test_refusals_name_what_is_served(address, values, complaint):
    with pytest.raises(TritonError, match=complaint):
        with_client(address, lambda client: client.generate("tiny", *values))


def test_an_error_of_triton_itself_fails_what_waits_and_the_stream_goes_on(address):
    async def use(client):
        with pytest.raises(TritonLost, match="nowhere"):
            await client.describe("nowhere")
        return await client.generate("tiny", "a fox", 1, 1, 64, 64)

    assert with_client(address, use).image.shape == (64, 64, 3)


def test_nobody_listening_is_one_clear_error():
    async def use(client):
        assert not await client.ready()
        with pytest.raises(TritonLost, match="connection to Triton broke"):
            await client.describe("tiny")

    with_client("127.0.0.1:9", use)
