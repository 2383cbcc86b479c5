"""The middleware around an application that misbehaves."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request

from cdm_serve.api.auth import Keys
from cdm_serve.api.errors import install_handlers
from cdm_serve.api.limits import RateLimits
from cdm_serve.api.metrics import Metrics
from cdm_serve.api.middleware import RequestMiddleware
from cdm_serve.settings import Settings

SETTINGS = Settings(body_limit=10)
app = FastAPI()
install_handlers(app)


@app.get("/crash")
async def crash() -> None:
    raise ZeroDivisionError("secret")


@app.post("/read")
async def read(request: Request) -> int:
    return len(await request.body())


def send(method, path, **options):
    async def run():
        transport = httpx.ASGITransport(
            RequestMiddleware(
                app, Settings(body_limit=10), Keys([]), RateLimits(None, 4), Metrics()
            ),
            raise_app_exceptions=False,
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def test_a_crash_is_a_500_in_the_same_shape_and_tells_no_secret(caplog):
    response = send("GET", "/crash")
    assert response.status_code == 500
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError: secret" in caplog.text


async def in_parts(count):
    for _ in range(count):
        yield b"x" * 5


@pytest.mark.parametrize(("size", "status"), [(0, 200), (10, 200), (11, 413), (10**7, 413)])
def test_a_declared_length_over_the_limit_is_refused(size, status):
    assert send("POST", "/read", content=b"x" * size).status_code == status


@pytest.mark.parametrize(("parts", "status"), [(2, 200), (3, 413), (1000, 413)])
def test_a_body_without_length_is_counted(parts, status):
    response = send("POST", "/read", content=in_parts(parts))
    assert response.status_code == status
    if status == 413:
        assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("given", ["abc-1", "00-4bf92f3577b34da6/9:x=", "a" * 128])
def test_a_given_id_is_kept(given):
    assert send("GET", "/nothing", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "<script>", 'a"b'])
def test_an_id_that_would_spoil_a_log_is_replaced(given):
    kept = send("GET", "/nothing", headers={"x-request-id": given}).headers["x-request-id"]
    assert kept.startswith("req_")


def test_an_unknown_host_is_refused():
    refused = send("GET", "/crash", headers={"host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_host")


def test_head_is_get_without_its_body():
    answer = send("HEAD", "/nothing")
    assert (answer.status_code, answer.content) == (404, b"")
    assert int(answer.headers["content-length"]) > 10


def test_what_is_left_of_the_limits_is_told_on_the_api_alone():
    headers = send("GET", "/v1/nothing").headers
    told = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
    assert told == {
        "x-ratelimit-limit-images": "4",
        "x-ratelimit-remaining-images": "4",
        "x-ratelimit-reset-images": "0.000s",
    }
    assert "x-ratelimit-limit-images" not in send("GET", "/nothing").headers
