"""A cluster of this machine alone: more requests than all engines take, and who may join it."""

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, Server, free_port

pytest.importorskip("ray", reason="pip install 'cdm-serve[ray]'")
pytestmark = pytest.mark.slow  # a minute to start, on two cores


@pytest.fixture(scope="module")
def full(repository, tmp_path_factory):
    """One engine that takes one request while one waits; the gateway's own line is long."""
    port = free_port()
    command = [sys.executable, "-m", "cdm_serve", "--ray", "--model-repository", repository]
    command += ["--engines", "1", "--engine-requests", "1", "--queue-seconds", "3600"]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    environment["HOME"] = str(tmp_path_factory.mktemp("home"))  # Ray writes its token there
    output = tmp_path_factory.mktemp("full") / "output"
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


def test_who_has_no_token_is_not_let_in(full, tmp_path):
    """Ray listens on every address of the machine, and runs what it is given."""
    (raylet,) = [pid for pid, name in full.descendants().items() if name == "raylet"]
    words = Path(f"/proc/{raylet}/cmdline").read_text().split("\0")
    (address,) = [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]
    join = [sys.executable, "-c", f"import ray; ray.init({address!r})"]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    result = subprocess.run(join, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode != 0
    assert "ConnectionError" in result.stderr or "AuthenticationError" in result.stderr
    assert full.generate(prompt="a fox", size="64x64").status_code == 200
