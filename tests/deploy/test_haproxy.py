"""Two gateways behind HAProxy, as docs/scale.md sets it up, and one of them is killed."""

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from conftest import ROOT, Server, free_port

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
REQUESTS = 250
FIELDS = {"prompt": "a fox", "num_inference_steps": 4, "size": "96x64"}
LATER = "/v1/images/generations?async=true"


@pytest.fixture
def gateways(start, server, tmp_path):
    if HAPROXY is None:
        pytest.skip("needs HAProxy: apt install haproxy")
    folder = tmp_path / "links"
    folder.mkdir()
    options = ("--triton", server.triton_address(), "--link-folder", str(folder))
    both = [start(*options, "--queue-seconds", "600") for _ in range(2)]
    for each in both:
        each.wait_ready()
    return both


@pytest.fixture
def outside(gateways, tmp_path):
    """The two as a client sees them."""
    text = (ROOT / "docs" / "scale.md").read_text()
    text = re.search(r"```haproxy\n(.*?)```", text, re.DOTALL)[1]
    port = free_port()
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    for address, gateway in zip(("10.0.0.1:8000", "10.0.0.2:8000"), gateways, strict=True):
        text = text.replace(address, gateway.url.removeprefix("http://"))
    (tmp_path / "haproxy.cfg").write_text(text)
    process = subprocess.Popen([HAPROXY, "-f", str(tmp_path / "haproxy.cfg")])
    url = f"http://localhost:{port}"
    with httpx.Client(base_url=url, timeout=60.0) as http:
        outside = Server(process, url, tmp_path / "haproxy.cfg", http)
        outside.wait_ready()
        yield outside
    process.terminate()
    process.wait()


def test_a_killed_gateway_loses_nothing(gateways, outside, server):
    doomed, other = gateways
    links = [
        outside.generate(prompt="a fox", seed=k, response_format="url").json()["data"][0]["url"]
        for k in range(4)
    ]
    assert all(link.startswith(f"{outside.url}/v1/images/files/") for link in links)
    long = FIELDS | {"n": 4, "num_inference_steps": 16}
    jobs = [outside.http.post(LATER, json=long).headers["location"] for _ in range(4)]
    deadline = time.monotonic() + 60
    for job in jobs:  # asked of either
        while (state := outside.http.get(job).json())["status"] != "completed":
            assert state["status"] in ("queued", "in_progress")
            assert time.monotonic() < deadline
            time.sleep(0.05)
    route = "/v1/images/generations"
    counted = [each.metric("cdm_serve_requests_total", route=route) for each in gateways]
    assert min(counted) >= 2  # both take part
    # As anybody's: it asks again where a connection broke, which HAProxy does only where it ended.
    client = openai.OpenAI(base_url=f"{outside.url}/v1", api_key="none")

    def ask(seed):
        extra = {"seed": seed, "num_inference_steps": 4}
        (item,) = client.images.generate(prompt="a fox", size="96x64", extra_body=extra).data
        return item.b64_json

    with client, ThreadPoolExecutor(16) as pool:
        running = [pool.submit(ask, seed) for seed in range(REQUESTS)]
        running[REQUESTS // 3].result()
        os.kill(doomed.process.pid, signal.SIGKILL)
        pictures = [future.result() for future in running]
    for seed in (0, REQUESTS // 3 + 8, REQUESTS - 1):
        wanted = server.generate(**FIELDS, seed=seed).json()["data"][0]["b64_json"]
        assert pictures[seed] == wanted
    for link in links:
        assert httpx.get(link).content.startswith(b"\x89PNG")
    for job in jobs:
        assert len(outside.http.get(job).json()["answer"]["data"]) == 4
    assert other.interrupt() == 0
