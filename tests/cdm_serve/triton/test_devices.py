"""Two bundled Tritons, as on two GPUs; here both compute on the CPU."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import descendants

from cdm_serve.cli import main


@pytest.fixture(scope="module")
def devices(start):
    server = start("--devices", "0,1")
    server.wait_ready()  # with the first of them; it greets when all are there
    deadline = time.monotonic() + 120
    while "Ctrl-C stops" not in server.printed:
        assert time.monotonic() < deadline, server.printed
        time.sleep(0.05)
    return server


def tritons(server):
    """The Triton of each device."""
    found = {}
    for pid, name in server.descendants().items():
        if name == "tritonserver":
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            (device,) = [v for v in variables if v.startswith(b"CUDA_VISIBLE_DEVICES=")]
            found[device.partition(b"=")[2].decode()] = pid
    return found


def engines(server, counter):
    """A counter of every engine; they are asked in turns."""
    found = {}
    for _ in range(2):
        for line in server.http.get("/metrics").text.splitlines():
            if line.startswith(f"cdm_engine_{counter}_total{{"):
                found[line.partition('engine="')[2].partition('"')[0]] = float(line.split()[-1])
    return found


def test_work_is_shared_and_each_sees_its_device_alone(devices, server):
    assert tritons(devices).keys() == {"0", "1"}
    with ThreadPoolExecutor(8) as pool:
        drawn = [pool.submit(devices.picture, "a fox", seed, 8) for seed in range(16)]
        for seed, picture in enumerate(drawn):
            assert picture.result() == server.picture("a fox", seed, 8)
    shares = engines(devices, "pictures")
    assert len(shares) == 2 and sum(shares.values()) == 16
    assert min(shares.values()) >= 4


def test_a_cancel_reaches_the_one_that_has_the_picture(devices):
    before = engines(devices, "cancelled")
    fields = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "stream": True}
    fields["partial_images"] = 3  # so that the first of them comes while all are drawn
    deadline = time.monotonic() + 30
    while any(count == before[each] for each, count in engines(devices, "cancelled").items()):
        assert time.monotonic() < deadline
        with devices.http.stream("POST", "/v1/images/generations", json=fields) as response:
            next(response.iter_lines())
    assert devices.picture("a fox", 7, 1)


def test_one_dies_and_the_other_serves(devices):
    picture = devices.picture("a fox", 7, 4)
    victim = tritons(devices)["1"]
    restarts = devices.http.get("/readyz").json()["restarts"]
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        assert devices.picture("a fox", 7, 4) == picture
    assert devices.ready()
    assert not descendants(victim)
    assert devices.http.get("/readyz").json()["restarts"] == restarts + 1


def test_it_is_for_the_bundled_triton(capsys):
    assert main(["--devices", "0,1", "--triton", "127.0.0.1:9"]) == 2
    assert "--devices is for the bundled Triton: leave it out" in capsys.readouterr().err
