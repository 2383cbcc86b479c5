"""Every failure on every route has OpenAI's shape, and the server goes on."""

import json
import socket
import time

import pytest

ROUTE = "/v1/images/generations"


@pytest.fixture(autouse=True)
def goes_on(server):
    yield
    assert server.http.get("/readyz").status_code == 200
    server.picture("a fox", 1, 1)


def check(response, status, param=None):
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    return error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": 5}, 400, "prompt"),
        ({"prompt": "x" * 4001}, 400, "prompt"),
        ({"prompt": "x" * 10_000}, 400, "prompt"),
        ({"prompt": "a\u0007fox"}, 400, "prompt"),
        ({"prompt": "a fox", "model": "nope"}, 404, "model"),
        ({"prompt": "a fox", "size": "large"}, 400, "size"),
        ({"prompt": "a fox", "n": 0}, 400, "n"),
        ({"prompt": "a fox", "n": 11}, 400, "n"),
        ({"prompt": "a fox", "seed": 1.5}, 400, "seed"),
        ({"prompt": "a fox", "image": "data:"}, 400, "image"),
    ],
)
def test_a_bad_field_is_named(server, fields, status, param):
    assert param in check(server.generate(**fields), status, param)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"prompt": "a fox"', "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"a fox"', "JSON object"),
        (b'{"prompt": "\xff\xfe"}', "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b'{"prompt": "", "\\ud800": 1}', "prompt"),
        (b'{"prompt": "", "seed": 1%s}' % (b"0" * 4000), "prompt"),
        (b'{"prompt": "", "guidance_scale": NaN}', "prompt"),
    ],
)
def test_a_broken_body_is_refused(server, body, complaint):
    response = server.http.post(ROUTE, content=body, headers={"content-type": "application/json"})
    param = "prompt" if complaint == "prompt" else None
    assert complaint in check(response, 400, param)


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain;json"])
def test_another_content_type_is_refused(server, content_type):
    response = server.http.post(
        ROUTE, content=b'{"prompt": "a fox"}', headers={"content-type": content_type}
    )
    assert "send application/json" in check(response, 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/images/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", ROUTE, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/", 405),
    ],
)
def test_a_wrong_route_or_method(server, method, path, status):
    response = server.http.request(method, path)
    check(response, status, "model" if path.endswith("other") else None)
    assert ("allow" in response.headers) == (status == 405)


def exchange(server, head, chunks):
    """Send by hand, stop when the other side does; what came back, and how much was taken."""
    host, port = server.url.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head)
        try:
            for chunk in chunks:
                connection.sendall(chunk)
                sent += len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return answer, sent


def test_ten_megabytes_are_refused_before_they_are_sent(server):
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "content-length: 10000000\r\nconnection: close\r\n\r\n"
    )
    answer, _ = exchange(server, head.encode(), [])
    assert answer.startswith(b"HTTP/1.1 413 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] == "the body is larger than 65536 bytes"
    assert error["code"] == "request_too_large"


def test_ten_megabytes_in_chunks_are_refused_on_the_way(server):
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )

    def chunks():
        yield b"10000\r\n" + b"x" * 65536 + b"\r\n"
        yield b"10000\r\n" + b"x" * 65536 + b"\r\n"
        time.sleep(0.5)  # the answer is there before the rest is sent

    answer, _ = exchange(server, head.encode(), chunks())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_a_client_that_sends_ten_megabytes_all_the_same_reads_the_refusal(server):
    response = server.http.post(
        ROUTE, content=b"x" * 10_000_000, headers={"content-type": "application/json"}
    )
    assert "larger than 65536 bytes" in check(response, 413)


def test_ids_differ(server):
    ids = {server.http.get("/healthz").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


@pytest.mark.slow
def test_an_idle_connection_is_kept(server):
    """A balancer keeps them for a minute; uvicorn's own 5 seconds would lose its requests."""
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        for idle in (6, 0):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(idle)
