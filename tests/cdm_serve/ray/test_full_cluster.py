"""More requests than all engines of a cluster take."""

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import ROOT, Server, free_port

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")
pytestmark = pytest.mark.slow  # a minute to start, on two cores


@pytest.fixture
def full(repository, tmp_path):
    """One engine that takes one request while one waits; the gateway's own line is long."""
    port = free_port()
    command = [sys.executable, "-m", "cdm_serve", "--ray", "--model-repository", repository]
    command += ["--engines", "1", "--engine-requests", "1", "--queue-seconds", "3600"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=file, stderr=file, cwd=ROOT, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    server = Server(process, url, output, httpx.Client(base_url=url, timeout=120.0))
    try:
        server.wait_ready()
        yield server
    finally:
        server.http.close()
        process.send_signal(signal.SIGINT)
        process.wait(120)


def test_what_is_more_is_refused_and_the_rest_is_drawn(full):
    fields = {"prompt": "a fox", "num_inference_steps": 16, "size": "96x64"}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: full.generate(**fields), range(64)))
    codes = Counter(answer.status_code for answer in answers)
    assert codes.keys() == {200, 429}, codes
    for answer in answers:
        if answer.status_code == 429:
            error = answer.json()["error"]
            assert error["code"] == "queue_full" and "wait for an engine" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
