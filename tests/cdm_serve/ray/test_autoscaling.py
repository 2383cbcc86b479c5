"""An engine is added while the first has too much to do."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import ROOT, Server, free_port

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")
pytestmark = pytest.mark.slow  # a minute to start, on two cores

FIELDS = {"prompt": "a fox", "num_inference_steps": 16, "size": "96x64"}


@pytest.fixture
def growing(repository, tmp_path):
    """One engine that is half full with four requests, and room for another engine."""
    port = free_port()
    command = [sys.executable, "-m", "cdm_serve", "--ray", "--model-repository", repository]
    command += ["--engines", "2", "--engine-requests", "8", "--engine-cpus", "0.5"]
    command += ["--queue-seconds", "3600", "--port", str(port)]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    environment["HOME"] = str(tmp_path)  # Ray writes its token there
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=environment)
    url = f"http://127.0.0.1:{port}"
    server = Server(process, url, output, httpx.Client(base_url=url, timeout=120.0))
    try:
        server.wait_ready()
        yield server
    finally:
        server.http.close()
        process.send_signal(signal.SIGINT)
        process.wait(120)


def engines(server):
    lines = server.http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("cdm_engine_pictures_total{")]
    return {line.split('engine="')[1].split('"')[0] for line in found}


def test_more_work_brings_another_engine(growing):
    assert growing.generate(**FIELDS).status_code == 200
    deadline = time.monotonic() + 180
    with ThreadPoolExecutor(6) as pool:

        def client():
            refused = []
            while time.monotonic() < deadline and len(seen) < 2:
                answer = growing.generate(**FIELDS)
                refused += [answer.text] if answer.status_code != 200 else []
            return refused

        seen = engines(growing)
        running = [pool.submit(client) for _ in range(6)]
        while time.monotonic() < deadline and len(seen) < 2:
            seen |= engines(growing)
            time.sleep(0.5)
        refused = [answer for future in running for answer in future.result()]
    assert len(seen) == 2, growing.printed
    assert refused == []
