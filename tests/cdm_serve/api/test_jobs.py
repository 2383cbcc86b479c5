"""Pictures that are fetched later, from a real server; then what a real server hardly does."""

import asyncio
import base64
import json
import time

import pytest
from starlette.requests import Request

from cdm_serve.api.admission import Admission, PictureCost
from cdm_serve.api.errors import ApiError
from cdm_serve.api.files import MemoryStore
from cdm_serve.api.folder import FolderStore
from cdm_serve.api.jobs import Jobs
from cdm_serve.api.plan import Made, Plan, Waiting
from cdm_serve.backend import BackendError
from cdm_serve.engine.card import ModelCard

ROUTE = "/v1/images/generations"
LATER = {"prefer": "wait=10, Respond-Async"}


def ask(server, headers=LATER, query="", **fields):
    return server.http.post(ROUTE + query, json={"prompt": "a fox", **fields}, headers=headers)


def follow(server, response):
    """Every state of a job until it ends."""
    assert response.status_code == 202, response.text
    assert response.headers["preference-applied"] == "respond-async"
    states = [response.json()]
    deadline = time.monotonic() + 60
    while states[-1]["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        states.append(server.http.get(response.headers["location"]).json())
    return states


def test_the_answer_is_the_one_that_would_have_come(server):
    fields = {"n": 2, "seed": 5, "num_inference_steps": 2, "style": "vivid"}
    *before, last = follow(server, ask(server, **fields))
    assert all(state["answer"] is None for state in before)
    now = ask(server, headers=None, **fields).json()
    for item in (*last["answer"]["data"], *now["data"]):
        del item["receipt"]
    assert last["answer"] | {"created": 0} == now | {"created": 0}
    assert (last["status"], last["error"], last["previews"]) == ("completed", None, [])


def test_a_job_shows_previews_and_gives_links(server):
    fields = {"num_inference_steps": 16, "n": 10, "size": "96x64", "response_format": "url"}
    response = ask(server, headers=None, query="?async=true", partial_images=3, **fields)
    states = follow(server, response)
    previews = [each for state in states for each in state["previews"]]
    assert previews
    assert all(base64.b64decode(each["b64_json"]).startswith(b"\x89PNG") for each in previews)
    for item in states[-1]["answer"]["data"]:
        assert server.http.get(item["url"]).content.startswith(b"\x89PNG")


def test_a_job_that_is_deleted_leaves_the_line(server):
    response = ask(server, n=10, num_inference_steps=16, size="96x64")
    address = response.headers["location"]
    assert server.http.delete(address).status_code == 204
    assert server.http.get(address).status_code == 404
    deadline = time.monotonic() + 60
    while server.metric("cdm_serve_pictures_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_streams_and_pictures_themselves_come_as_ever(server):
    assert ask(server, stream=True).headers["content-type"].startswith("text/event-stream")
    raw = ask(server, headers=LATER | {"accept": "image/png"})
    assert (raw.status_code, raw.headers["content-type"]) == (200, "image/png")
    assert ask(server, n=11).status_code == 400


PLAN = Plan(
    model=ModelCard("tiny", "sd3", "f00d", ("64x64",), "64x64", 4, 8, 4),
    prompt="a fox",
    seeds=(1, 2),
    steps=4,
    size="64x64",
    decoder="full",
    output_format="png",
    compression=100,
    raw=False,
    link=True,
    stream=False,
    partials=0,
    deadline=None,
)


def request_of(owner):
    scope = {"type": "http", "scheme": "http", "path": "/", "headers": [(b"host", b"a")]}
    return Request(scope | {"state": {"owner": owner}, "server": ("a", 80)})


async def run(events, store, read):
    """Start a job of these events, let it end, and read it."""
    jobs, admission = Jobs(store, None), Admission(10.0)
    ticket = admission.admit(PictureCost(1.0, 1.0), 2, None)
    response = await jobs.start(PLAN, ticket, events, request_of("key-a"))
    name = response.headers["location"].rpartition("/")[2]
    routes = {route.methods.copy().pop(): route.endpoint for route in jobs.router().routes}
    async with asyncio.timeout(60):
        while admission.pictures:
            await asyncio.sleep(0.001)
    return await read(routes["GET"], name)


async def pictures():
    yield Waiting(0)
    for number in (1, 0):
        receipt = {"seed": 1 + number}
        yield Made(b"12345678", number, receipt, 3)


async def failing():
    yield Waiting(0)
    raise BackendError("out of memory", "failed")


def test_a_failure_is_told():
    async def read(get, name):
        state = (await get(name, request_of("key-a"))).body.decode()
        assert '"status":"failed"' in state
        assert '"code":"model_error"' in state

    asyncio.run(run(failing(), MemoryStore(100, 60.0), read))


def test_others_do_not_see_it():
    async def read(get, name):
        assert '"seed":1' in (await get(name, request_of("key-a"))).body.decode()
        with pytest.raises(ApiError, match="there is no job"):
            await get(name, request_of("key-b"))

    asyncio.run(run(pictures(), MemoryStore(100, 60.0), read))


def test_pictures_that_had_to_make_room_are_gone():
    async def read(get, name):
        with pytest.raises(ApiError, match="had to make room"):
            await get(name, request_of("key-a"))

    asyncio.run(run(pictures(), MemoryStore(10, 60.0), read))


def test_a_job_whose_gateway_is_gone_has_failed(tmp_path, monkeypatch):
    """What was written last is all that another gateway has."""
    monkeypatch.setattr("cdm_serve.api.jobs.LOST_SECONDS", 2.0)

    async def waiting():
        while True:
            yield Waiting(3)
            await asyncio.sleep(0.05)

    async def check():
        store = FolderStore(tmp_path, 100, 60.0)
        jobs, ticket = Jobs(store, None), Admission(10.0).admit(PictureCost(1.0, 1.0), 2, None)
        response = await jobs.start(PLAN, ticket, waiting(), request_of("key-a"))
        name = response.headers["location"].rpartition("/")[2]
        routes = {
            each.methods.copy().pop(): each.endpoint for each in Jobs(store, None).router().routes
        }

        async def status():
            return json.loads((await routes["GET"](name, request_of("key-a"))).body)

        await asyncio.sleep(2.5)
        assert (await status())["status"] == "in_progress"
        jobs._running[name].task.cancel()
        async with asyncio.timeout(60):
            while (found := await status())["status"] == "in_progress":
                await asyncio.sleep(0.05)
        assert (found["status"], found["error"]["code"]) == ("failed", "not_ready")
        with pytest.raises(ApiError, match="there is no job"):
            await routes["DELETE"](name, request_of("key-b"))
        await routes["DELETE"](name, request_of("key-a"))
        assert not list(tmp_path.iterdir())

    asyncio.run(check())
