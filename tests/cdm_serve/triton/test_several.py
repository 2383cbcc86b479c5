"""Several Tritons behind one gateway, and one of them dies."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from compose import TritonService, with_trouble
from conftest import ROOT, STUB, free_port

from cdm_serve.engine.job import Job, Partial, Picture
from cdm_serve.triton import alive
from cdm_serve.triton.client import TritonClient

REQUESTS = 250


@pytest.fixture(scope="module")
def pair(small_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tritons")
    pair = [TritonService(small_repository, folder / f"triton_{name}") for name in "ab"]
    yield pair
    for triton in pair:
        triton.kill()


@pytest.fixture
def tritons(pair):
    """Two of the compose file's; whichever a test before has ended is started again."""
    for number, triton in enumerate(pair):
        if triton.process.poll() is not None:
            triton.kill()
            folder = triton.folder.with_name(f"{triton.folder.name}_again")
            pair[number] = TritonService(triton.repository, folder)
    for triton in pair:
        triton.wait_ready()
    return pair


@pytest.fixture
def haproxy(tritons, tmp_path):
    """The compose file's, with the Tritons named instead of looked up; its address."""
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed: apt install haproxy")
    grpc, health = free_port(), free_port()
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    (template,) = [line for line in text.splitlines() if "server-template" in line]
    servers = [
        f"    server {number} {triton.address} port {triton.http}"
        for number, triton in enumerate(tritons)
    ]
    text = text.replace(template, "\n".join(servers))
    text = text.replace("bind :8001", f"bind 127.0.0.1:{grpc}")
    text = text.replace("bind :8404", f"bind 127.0.0.1:{health}")
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    process = subprocess.Popen([program, "-f", file])
    yield f"127.0.0.1:{grpc}"
    process.terminate()
    process.wait()


def ask_while_one_dies(gateway, triton):
    """The answers to all requests; the Triton is killed when a third of them are there."""
    answers = []
    with ThreadPoolExecutor(16) as pool:
        running = [
            pool.submit(gateway.generate, prompt="a fox", seed=seed, num_inference_steps=4)
            for seed in range(REQUESTS)
        ]
        for number, future in enumerate(running):
            if number == REQUESTS // 3:
                os.kill(triton.pid_of("tritonserver"), signal.SIGKILL)
            answers.append(future.result())
    return answers


def pictures(triton):
    async def ask():
        client = TritonClient(triton.address)
        try:
            return (await client.describe("tiny"))["counters"]["pictures"]
        finally:
            await client.close()

    return asyncio.run(ask())


def check_nothing_lost(gateway, tritons, server):
    doomed, other = tritons
    before = [pictures(triton) for triton in tritons]
    for seed in range(20):
        assert gateway.generate(prompt="a fox", seed=seed).status_code == 200
    gained = [pictures(triton) - count for triton, count in zip(tritons, before, strict=True)]
    assert sum(gained) == 20
    assert min(gained) >= 5  # both take part
    answers = ask_while_one_dies(gateway, doomed)
    assert Counter(answer.status_code for answer in answers) == {200: REQUESTS}
    for seed in (0, REQUESTS // 3, REQUESTS - 1):
        again = server.generate(prompt="a fox", seed=seed, num_inference_steps=4)
        wanted = again.json()["data"][0]
        assert answers[seed].json()["data"][0]["b64_json"] == wanted["b64_json"]
    assert pictures(other) - before[1] >= REQUESTS // 2
    assert gateway.metric("cdm_serve_restarts_total") == 0
    assert gateway.metric("cdm_serve_pictures_in_flight") == 0


def test_one_of_a_list_is_killed_and_no_request_is_lost(tritons, start, server):
    gateway = start("--triton", ",".join(triton.address for triton in tritons))
    gateway.wait_ready()
    check_nothing_lost(gateway, tritons, server)
    assert gateway.interrupt() == 0


@pytest.mark.slow
def test_one_behind_haproxy_is_killed_and_no_request_is_lost(tritons, haproxy, start, server):
    gateway = start("--triton", haproxy)
    gateway.wait_ready()
    check_nothing_lost(gateway, tritons, server)
    assert gateway.interrupt() == 0


def test_a_cancel_comes_to_the_one_that_has_the_request(tritons):
    """Whoever leaves early stops his own picture, on both, and nobody else's."""
    target = "ipv4:" + ",".join(triton.address for triton in tritons)

    async def first(client, seed, partials):
        job = Job("a fox", seed, 16, "64x64", partials)
        async with contextlib.aclosing(client.stream("tiny", job)) as answers:
            return await anext(answers)

    async def counted(direct):
        """Pictures and cancelled ones of both, when nothing waits any more."""
        reports = [await one.describe("tiny") for one in direct]
        while any(report["waiting"] for report in reports):
            reports = [await one.describe("tiny") for one in direct]
        counters = [report["counters"] for report in reports]
        return np.array(
            [sum(each[name] for each in counters) for name in ("pictures", "cancelled")]
        )

    async def run():
        client = TritonClient(target, balanced=True)
        direct = [TritonClient(triton.address) for triton in tritons]
        connected = set()
        while len(connected) < len(tritons):
            connected.add((await client.describe("tiny"))["card"]["pid"])
        cancelled = 0
        while not cancelled:  # all may have been finished before their cancel came
            before = await counted(direct)
            leaving = [first(client, seed, partials=3) for seed in range(16)]
            staying = [first(client, seed, partials=0) for seed in range(8)]
            kinds = [type(answer) for answer in await asyncio.gather(*leaving, *staying)]
            assert kinds == [Partial] * 16 + [Picture] * 8
            pictures, cancelled = await counted(direct) - before
            assert pictures + cancelled == 24
        # A cancel for what is elsewhere, or over, is answered and changes nothing.
        with direct[0]._ask("tiny", {"command": "cancel", "key": "nobody's"}) as answers:
            assert await answers.get() == {"kind": "report"}
        for one in (client, *direct):
            await one.close()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_the_health_check_ends_a_triton_whose_model_died(tritons):
    first, second = tritons
    assert first.check() == 0
    os.kill(first.pid_of(STUB), signal.SIGKILL)
    assert second.check() == 0
    assert first.check() == 1
    first.process.wait(10)
    assert first.check() == 1


@pytest.mark.slow
def test_the_health_check_leaves_a_slow_one_alone_and_not_one_that_hangs(
    small_repository, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(alive, "SECONDS", 1.0)
    version = with_trouble(small_repository, tmp_path / "models")
    triton = TritonService(tmp_path / "models", tmp_path / "triton")
    check = [f"http://127.0.0.1:{triton.http}", "--end-children-of", str(triton.process.pid)]
    try:
        triton.wait_ready()
        (version / "busy").touch()
        assert alive.main(check) == 1
        assert f"tiny: {alive.SILENT}" in capsys.readouterr().out
        (version / "busy").unlink()
        assert alive.main(check) == 0
        os.kill(triton.pid_of(STUB), signal.SIGSTOP)
        assert alive.main(check) == 1
        triton.process.wait(10)
    finally:
        triton.kill()
