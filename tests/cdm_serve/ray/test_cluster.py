"""A cluster of three nodes on this machine's loopback addresses, and one of them dies."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, Server, free_port

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")
pytestmark = pytest.mark.slow  # a minute to start, on two cores

REQUESTS = 250
RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray allows 5 s, which is not enough where many processes share two cores.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_worker_niceness": "0",
    # Ray listens on every address of the machine.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


class Node:
    """``ray start`` with an address of its own, in a process group of its own."""

    def __init__(self, output, *arguments):
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [RAY, "start", *arguments, "--object-store-memory=100000000", "--block"],
                stdout=file,
                stderr=file,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while "--block" not in output.read_text():
            assert self.process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_host(number):
    """A loopback address that no other cluster of this machine uses."""
    return f"127.0.{os.getpid() % 200 + 10}.{number}"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    head, port = free_host(10), free_port()
    options = [f"--node-ip-address={head}", f"--port={port}", "--include-dashboard=false"]
    started = [Node(folder / "head", "--head", *options, "--num-cpus=0")]
    for number in (11, 12):
        options = [f"--address={head}:{port}", f"--node-ip-address={free_host(number)}"]
        started.append(Node(folder / str(number), *options, "--num-cpus=1"))
    yield f"{head}:{port}", started
    for node in reversed(started):
        node.kill()


@pytest.fixture(scope="module")
def cluster(nodes, repository, tmp_path_factory):
    """``cdm-serve --ray`` with an engine on each of the two workers."""
    address, _ = nodes
    output = tmp_path_factory.mktemp("cluster") / "output"
    port = free_port()
    command = [sys.executable, "-m", "cdm_serve", "--ray", "--model-repository", repository]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--engines-least", "2"],
            stdout=file,
            stderr=file,
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"RAY_ADDRESS": address},
        )
    url = f"http://127.0.0.1:{port}"
    server = Server(process, url, output, httpx.Client(base_url=url, timeout=120.0))
    server.wait_ready()
    deadline = time.monotonic() + 120
    while len(engines(server)) < 2:
        server.generate(prompt="a fox")
        assert time.monotonic() < deadline
    yield server
    server.http.close()
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def engines(server):
    """Pictures made, by engine."""
    lines = server.http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("cdm_engine_pictures_total{")]
    return {line.split('engine="')[1].split('"')[0]: float(line.split()[-1]) for line in found}


def total(server, name):
    lines = server.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


FIELDS = {"prompt": "a fox", "seed": 3, "num_inference_steps": 16, "size": "96x64", "stream": True}


def test_the_same_bytes_as_from_one_machine(cluster, server):
    job = ("a fox", 7, 4, "96x64")
    assert cluster.picture(*job) == server.picture(*job)


def test_pictures_that_come_in_reach_the_engines(cluster, server):
    fox, fields = server.picture("a fox", 1, 1), {"prompt": "an owl", "seed": 3, "strength": 0.5}
    here, there = (each.edit(fox, **fields).json()["data"][0] for each in (server, cluster))
    assert there["b64_json"] == here["b64_json"]


def test_events_come_while_the_picture_is_made(cluster):
    fields = FIELDS | {"partial_images": 3}
    with cluster.http.stream("POST", "/v1/images/generations", json=fields) as response:
        events = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert events == ["event: image_generation.partial_image"] * 3 + [
        "event: image_generation.completed"
    ]


def test_who_leaves_stops_the_remaining_steps(cluster):
    before = total(cluster, "cdm_engine_cancelled_total")
    fields = FIELDS | {"partial_images": 3, "n": 10}
    with cluster.http.stream("POST", "/v1/images/generations", json=fields) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 30
    while total(cluster, "cdm_engine_cancelled_total") == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_refusals_pass_the_boundary(cluster):
    answer = cluster.generate(prompt="a fox", size="1x1")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "size"


def test_a_node_is_killed_and_no_request_is_lost(cluster, nodes, server):
    """All of its processes at once, while both engines draw."""
    with ThreadPoolExecutor(16) as pool:
        running = [
            pool.submit(
                cluster.generate, prompt="a fox", seed=seed, num_inference_steps=4, size="96x64"
            )
            for seed in range(REQUESTS)
        ]
        answers = []
        for number, future in enumerate(running):
            if number == REQUESTS // 3:
                nodes[1][1].kill()
            answers.append(future.result())
    assert Counter(answer.status_code for answer in answers) == {200: REQUESTS}
    for seed in (0, REQUESTS // 3, REQUESTS - 1):
        again = server.generate(prompt="a fox", seed=seed, num_inference_steps=4, size="96x64")
        image = answers[seed].json()["data"][0]["b64_json"]
        assert image == again.json()["data"][0]["b64_json"]


def test_a_signal_takes_it_down_and_leaves_the_cluster(cluster, nodes):
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.process.wait(120) == 0
    assert cluster.printed.endswith("stopped\n")
    with pytest.raises(httpx.TransportError):
        cluster.http.get("/healthz")
    host, port = nodes[0].split(":")
    socket.create_connection((host, int(port)), 5).close()
