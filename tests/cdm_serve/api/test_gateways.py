"""Two gateways on one Triton with a common folder for links; one of them asks about prompts."""

import asyncio
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from cdm_serve.api import moderation
from cdm_serve.api.errors import ApiError
from cdm_serve.api.metrics import Metrics
from cdm_serve.settings import Settings

KEY = "the key of the moderation"


class Service(BaseHTTPRequestHandler):
    """Flags prompts about blood; of others it may say anything."""

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        if prompt == "slow":
            self.server.over.wait()
        answer = {"results": [{"flagged": "blood" in prompt}]} if prompt != "odd" else {}
        allowed = self.headers["authorization"] == f"Bearer {KEY}"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def service():
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        service.over = threading.Event()
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield service
        service.over.set()
        service.shutdown()


@pytest.fixture(scope="module")
def url(service):
    return f"http://127.0.0.1:{service.server_port}/v1/moderations"


@pytest.fixture(scope="module")
def gateways(start, server, url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("links")
    options = ["--triton", server.triton_address(), "--link-folder", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDM_SERVE_MODERATION_KEY", KEY)
        both = start(*options, "--moderation", url), start(*options)
    for each in both:
        each.wait_ready()
    return *both, folder


def test_a_flagged_prompt_is_refused_everywhere(gateways, tmp_path):
    gateway, other, _ = gateways
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    image = (tmp_path / "image.png").read_bytes()
    later = gateway.http.post(
        "/v1/images/generations?async=true", json={"prompt": "blood everywhere"}
    )
    edit = gateway.edit(image, prompt="blood everywhere")
    for response in (gateway.generate(prompt="blood everywhere"), later, edit):
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] == "moderation_blocked"
    assert gateway.generate(prompt="a fox").status_code == 200
    assert gateway.edit(image, route="variations").status_code == 200  # there is no prompt
    assert other.generate(prompt="blood everywhere").status_code == 200
    unsure = gateway.generate(prompt="odd")
    assert unsure.status_code == 503
    assert unsure.json()["error"]["code"] == "moderation_unavailable"
    for outcome, count in (("flagged", 3), ("passed", 1), ("unavailable", 1)):
        assert gateway.metric("cdm_serve_moderated_total", outcome=outcome) == count


def test_what_nobody_looked_at_is_not_made(service, url, monkeypatch, caplog):
    monkeypatch.setattr(moderation, "TIMEOUT_SECONDS", 0.2)
    settings = Settings(moderation=url, moderation_key=KEY)
    check = moderation.Moderation(settings, Metrics()).check

    async def refused(prompt):
        with pytest.raises(ApiError, match="nothing is made") as caught:
            await check(prompt)
        return caught.value.status

    async def twice():
        assert await refused("slow") == 503
        assert await refused("odd") == 503

    asyncio.run(twice())
    assert len(caplog.records) == 1  # until it works again
    for wrong in ({"moderation_key": "another"}, {"moderation": "http://127.0.0.1:9/"}):
        check = moderation.Moderation(settings.model_copy(update=wrong), Metrics()).check
        asyncio.run(refused("a fox"))


LONG = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "size": "96x64", "seed": 1}


def test_a_job_is_known_to_the_other_and_given_up_by_it(gateways):
    maker, other, folder = gateways
    route = "/v1/images/generations?async=true"
    jobs = [maker.http.post(route, json=LONG | {"partial_images": 2}) for _ in range(2)]
    kept, given_up = (job.headers["location"].removeprefix(maker.url) for job in jobs)
    assert other.http.delete(given_up).status_code == 204
    deadline = time.monotonic() + 60
    while (state := other.http.get(kept).json())["status"] != "completed":
        assert state["status"] in ("queued", "in_progress")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state == maker.http.get(kept).json()
    now = other.generate(**LONG).json()["data"]
    assert [each["b64_json"] for each in state["answer"]["data"]] == [
        each["b64_json"] for each in now
    ]
    assert {each.http.get(given_up).status_code for each in (maker, other)} == {404}
    while maker.metric("cdm_serve_pictures_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [path.name for path in folder.glob("*.json")] == [kept.rpartition("/")[2] + ".json"]


def test_a_link_outlasts_its_maker_until_it_expires(gateways):
    maker, other, folder = gateways
    answer = maker.generate(prompt="a fox", response_format="url").json()
    name = answer["data"][0]["url"].rpartition("/")[2]
    path = f"/v1/images/files/{name}"
    before = maker.http.get(path).content
    assert maker.interrupt() == 0
    fetched = other.http.get(path)
    assert fetched.content == before and before.startswith(b"\x89PNG")
    assert fetched.headers["content-type"] == "image/png"
    os.utime(folder / name, (time.time() - 3600,) * 2)
    assert other.http.get(path).status_code == 404
    assert not (folder / name).exists()
