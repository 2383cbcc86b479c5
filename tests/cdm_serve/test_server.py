"""How a server ends: nothing of it stays."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import STUB


class Segments:
    """The shared memory of one server, known as long as its Triton runs."""

    def __init__(self, server):
        # Triton's children bear its name and its command until they become something else.
        commands = [
            Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            for pid, name in server.descendants().items()
            if name == "tritonserver"
        ]
        (self.prefix,) = {
            argument.partition("shm-region-prefix-name=")[2]
            for command in commands
            for argument in command
            if "shm-region-prefix-name=" in argument
        }

    def __call__(self):
        return list(Path("/dev/shm").glob(f"{self.prefix}*"))


def survivors(processes, seconds):
    """Those still alive after the time."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [pid for pid in processes if alive(pid)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_finishes_what_is_in_flight_and_leaves_nothing(start, number):
    server = start("--max-pixels", str(256 * 256))
    server.wait_ready()
    segments = Segments(server)
    assert segments()
    processes = server.descendants()
    with ThreadPoolExecutor(4) as pool:
        # Large, so that they last until all are seen.
        fields = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "size": "256x256"}
        running = [pool.submit(server.generate, **fields) for _ in range(3)]
        running += [pool.submit(server.generate, **fields, stream=True, partial_images=3)]
        while server.metric("cdm_serve_pictures_in_flight") <= 30:  # until all four are there
            assert not any(future.done() for future in running)
        assert server.interrupt(number) == 0
        answers = [future.result() for future in running]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[3].text.count("event: image_generation.completed") == 10
    assert not survivors(processes, 0)
    assert not segments()
    assert not list(server.output.parent.glob("cdm-serve-*"))
    assert server.printed.endswith("stopped\n")
    with pytest.raises(httpx.ConnectError):
        server.http.get("/healthz")


def test_triton_does_not_outlive_a_killed_server(start):
    server = start()
    server.wait_ready()
    processes, segments = server.descendants(), Segments(server)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert not survivors(processes, 60)
    assert not segments()
    assert not list(server.output.parent.glob("cdm-serve-*"))


@pytest.mark.slow
def test_not_even_when_the_guard_is_killed_too(start):
    """The kernel then ends Triton and its model, even a hung one; the next server clears up.

    That one is stopped while its models load, and leaves nothing either.
    """
    server = start()
    server.wait_ready()
    processes, segments = server.descendants(), Segments(server)
    (guard,) = [pid for pid in processes if parent(pid) == server.process.pid]
    (stub,) = [pid for pid, name in processes.items() if name == STUB]
    os.kill(stub, signal.SIGSTOP)
    os.kill(server.process.pid, signal.SIGSTOP)  # it would clean up after the guard
    os.kill(guard, signal.SIGKILL)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert not survivors(processes, 60)
    assert segments()
    following = start()
    while "tritonserver" not in (processes := following.descendants()).values():
        time.sleep(0.02)
    assert not segments()
    assert not list(server.output.parent.glob("cdm-serve-*"))
    segments = Segments(following)
    assert following.interrupt() == 0
    assert not survivors(processes, 0)
    assert not segments()
    assert not list(following.output.parent.glob("cdm-serve-*"))


@pytest.mark.slow
def test_a_hung_model_holds_up_no_request_beyond_its_deadline_and_not_the_end(start):
    server = start("--drain-seconds", "1", "--heartbeat-seconds", "600")
    server.wait_ready()
    processes = server.descendants()
    (stub,) = [pid for pid, name in processes.items() if name == STUB]
    os.kill(stub, signal.SIGSTOP)
    route, body = "/v1/images/generations", {"prompt": "a fox"}
    late = server.http.post(route, json=body, headers={"x-request-timeout-ms": "1000"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.generate, prompt="a fox")
        time.sleep(0.2)
        assert server.interrupt() == 0
        # A clean refusal, or a connection cut at the end of the drain: never silence.
        assert running.exception() is not None or running.result().status_code >= 500
    assert not survivors(processes, 0)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_another_triton_is_used_and_left_running(start, server):
    gateway = start("--triton", server.triton_address())
    gateway.wait_ready()
    assert gateway.descendants() == {}
    assert gateway.picture("a fox", 7, 4) == server.picture("a fox", 7, 4)
    assert gateway.interrupt() == 0
    server.picture("a fox", 8, 4)


def test_the_start_is_told_in_a_few_lines(server):
    lines = server.printed.splitlines()
    assert "starting the bundled Triton" in lines[0]
    assert "ready tiny 64x64, 96x64, 4 steps" in lines[1]
    assert server.url in lines[2]
    assert lines[3].strip().startswith(f"curl {server.url}/v1/images/generations")
