"""Real deaths of real processes."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

STUB = "triton_python_b"  # the kernel keeps 15 characters


def pid_of(server, name):
    (pid,) = [pid for pid, found in server.descendants().items() if found == name]
    return pid


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
        wait_until(lambda: not server.ready(), 5)
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


def test_a_model_that_hangs_is_found_by_its_heartbeat(start):
    server = start("--heartbeat-seconds", "0.2", "--heartbeat-timeout", "3")
    server.wait_ready()
    picture = server.picture("a fox", 7, 4)
    os.kill(pid_of(server, STUB), signal.SIGSTOP)
    # The request that it hangs with is made again.
    assert server.picture("a fox", 7, 4) == picture
    assert server.http.get("/readyz").json()["restarts"] >= 1
    assert "restarting" in server.printed
    assert server.interrupt() == 0
