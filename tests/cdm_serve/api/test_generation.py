"""The model's process is killed while pictures are being made."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from conftest import STUB

JOBS = [("a fox", seed, 16) for seed in range(24)]


@pytest.fixture(scope="module")
def own(start):
    server = start("--heartbeat-seconds", "0.5", "--retry-seconds", "120")
    server.wait_ready()
    return server


def model_pid(server):
    (stub,) = [pid for pid, name in server.descendants().items() if name == STUB]
    return stub


def kill_model(server):
    os.kill(model_pid(server), signal.SIGKILL)


@contextmanager
def model_killed_for_long(server):
    """The Triton that is started for it is held up: no retry finds one that was quick."""
    over, held = threading.Event(), set(server.descendants())

    def hold():
        while not over.is_set():
            for pid, name in server.descendants().items():
                if name == "tritonserver" and pid not in held:
                    held.add(pid)
                    os.kill(pid, signal.SIGSTOP)
            over.wait(0.02)

    before = set(held)
    holder = threading.Thread(target=hold)
    holder.start()
    try:
        kill_model(server)
        yield
    finally:
        over.set()
        holder.join()
        for pid in held - before:
            os.kill(pid, signal.SIGCONT)


def test_every_picture_is_made_once_more_and_is_the_same(own, server):
    wanted = [server.picture(*job) for job in JOBS]
    with ThreadPoolExecutor(8) as pool:
        pictures = [pool.submit(own.picture, *job) for job in JOBS]
        while not pictures[0].done():
            time.sleep(0.001)
        kill_model(own)
        # A request that came between the death and its discovery is retried as well; one that
        # came while nothing was ready was told so, and is not what this test is about.
        made = [future.exception() or future.result() for future in pictures]
    answered = [k for k, picture in enumerate(made) if isinstance(picture, bytes)]
    assert [made[k] for k in answered] == [wanted[k] for k in answered]
    for k in set(range(len(JOBS))) - set(answered):
        assert '"not_ready"' in str(made[k])
    assert own.metric("cdm_serve_retried_total") > 0
    assert len(answered) > own.metric("cdm_serve_retried_total") > 0
    own.wait_ready()
    assert own.metric("cdm_serve_restarts_total") == 1
    assert own.metric("cdm_serve_pictures_in_flight") == 0


def test_a_stream_goes_on_where_it_was(own, server):
    fields = {
        "prompt": "a fox",
        "seed": 3,
        "num_inference_steps": 16,
        "n": 10,
        "stream": True,
        "partial_images": 3,
    }

    def events(host, disturb):
        lines = []
        with host.http.stream("POST", "/v1/images/generations", json=fields) as response:
            for line in response.iter_lines():
                if disturb and not lines:
                    kill_model(host)
                    disturb = False
                if line.startswith("event: "):
                    lines.append(line)
        return lines

    disturbed = events(own, True)
    assert sorted(disturbed) == sorted(events(server, False))
    assert len(disturbed) == 40
    own.wait_ready()


@pytest.mark.slow
def test_what_does_not_come_back_in_time_is_one_clear_503(start):
    server = start("--retry-seconds", "0.05", "--heartbeat-seconds", "0.5")
    server.wait_ready()
    with ThreadPoolExecutor(8) as pool:
        fields = {"prompt": "a fox", "num_inference_steps": 16, "n": 10}
        running = [pool.submit(server.generate, **fields) for _ in range(8)]
        time.sleep(0.1)
        with model_killed_for_long(server):
            answers = [future.result() for future in running]
    assert {answer.status_code for answer in answers} <= {200, 503}
    lost = [answer for answer in answers if answer.status_code == 503]
    assert lost
    for answer in lost:
        assert answer.json()["error"]["code"] == "not_ready"
        assert answer.headers["retry-after"] == "1"
    server.wait_ready()
    with (
        ThreadPoolExecutor(8) as pool,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for _ in range(8):  # so that the stream is not at its end before the model is
            pool.submit(server.generate, **fields)
        extra = {key: fields[key] for key in ("num_inference_steps",)}
        model = model_pid(server)
        events = client.images.generate(
            prompt="a fox", n=10, stream=True, partial_images=3, extra_body=extra
        )
        kinds = [next(iter(events)).type]
        os.kill(model, signal.SIGSTOP)  # at once: to find out whom to hold up takes a while
        with (
            model_killed_for_long(server),
            pytest.raises(openai.APIError, match=r"restart|ended|broke|loaded"),
        ):
            kinds += [event.type for event in events]
        assert kinds.count("image_generation.completed") < 10
    server.wait_ready()
    assert server.generate(prompt="a fox").status_code == 200
    assert server.interrupt() == 0
