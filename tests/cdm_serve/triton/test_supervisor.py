"""Real deaths of real processes."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from compose import with_trouble
from conftest import STUB


def pid_of(server, name):
    (pid,) = [pid for pid, found in server.descendants().items() if found == name]
    return pid


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server(start):
    server = start()
    server.wait_ready()
    return server


@pytest.mark.parametrize("victim", [STUB, "tritonserver"])
def test_a_killed_process_is_replaced_and_answers_the_same(server, victim):
    before = server.picture("a fox", 7, 4)
    restarts = server.http.get("/readyz").json()["restarts"]
    pid = pid_of(server, victim)
    with ThreadPoolExecutor(8) as pool:
        running = [
            pool.submit(server.generate, prompt="a fox", seed=7, n=10, num_inference_steps=16)
            for _ in range(8)
        ]
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not server.ready(), 60)
        answers = [future.result() for future in running]
    # Whoever was in flight has an answer: a picture if it was early enough, else a clean 503.
    assert {answer.status_code for answer in answers} <= {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "not_ready"
            assert answer.headers["retry-after"] == "1"
    assert server.http.get("/healthz").status_code == 200
    server.wait_ready()
    assert server.http.get("/readyz").json()["restarts"] == restarts + 1
    assert server.picture("a fox", 7, 4) == before
    names = list(server.descendants().values())
    assert names.count("tritonserver") == names.count(STUB) == 1


def test_a_process_that_dies_before_its_first_word_is_not_waited_for(start):
    server = start("--start-seconds", "600")
    wait_until(lambda: STUB in server.descendants().values(), 60)
    os.kill(pid_of(server, STUB), signal.SIGKILL)
    assert server.process.wait(120) == 2
    # Later than at once, Triton finds it out by itself.
    said = ("the process of a model ended while Triton loaded it", "is not healthy")
    assert any(each in server.printed for each in said)


@pytest.mark.slow
def test_a_slow_model_is_left_alone_and_one_that_hangs_is_not(start, small_repository, tmp_path):
    version = with_trouble(small_repository, tmp_path / "models")
    options = ("--heartbeat-seconds", "0.2", "--heartbeat-timeout", "1")
    server = start("--model-repository", str(tmp_path / "models"), *options)
    server.wait_ready()
    picture = server.picture("a fox", 7, 4)
    (version / "busy").touch()
    wait_until(lambda: "model tiny is slow: no answer in 3 s" in server.printed, 30)
    (version / "busy").unlink()
    assert server.picture("a fox", 7, 4) == picture
    assert server.http.get("/readyz").json()["restarts"] == 0
    # In a step: it answers its heartbeats all the time, and the request is made again.
    (version / "hang").touch()
    assert server.picture("a fox", 7, 4) == picture
    assert server.http.get("/readyz").json()["restarts"] == 1
    assert "model tiny: an execution (step, 1 at once) has taken" in server.printed
    # All of it.
    os.kill(pid_of(server, STUB), signal.SIGSTOP)
    assert server.picture("a fox", 7, 4) == picture
    assert server.http.get("/readyz").json()["restarts"] == 2
    assert "model tiny has not answered for 1 s" in server.printed
    assert server.interrupt() == 0
