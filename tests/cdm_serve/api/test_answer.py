"""Server-sent events, read by OpenAI's client; and clients that leave."""

import base64
import io
import json
import socket
import time

import openai
import pytest
from PIL import Image

ROUTE = "/v1/images/generations"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed(client, **fields):
    return list(client.images.generate(prompt="a fox", stream=True, **fields))


def test_previews_then_the_picture_that_comes_without_a_stream(client, server):
    events = streamed(client, partial_images=2, extra_body={"seed": 7, "num_inference_steps": 8})
    *partials, completed = events
    assert [event.type for event in partials] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert completed.type == "image_generation.completed"
    assert base64.b64decode(completed.b64_json) == server.picture("a fox", 7, 8)
    for event in events:
        image = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
        assert (image.format, image.size) == ("PNG", (64, 64))
        assert (event.size, event.quality, event.output_format) == ("64x64", "xhigh", "png")
        assert event.background == "opaque"
        assert abs(event.created_at - time.time()) < 60
    assert len({event.b64_json for event in events}) == 3
    assert completed.usage.output_tokens == 256
    assert completed.receipt["seed"] == 7


@pytest.mark.parametrize(
    ("steps", "asked", "sent"), [(4, 0, 0), (4, 3, 3), (1, 3, 0), (2, 3, 1), (4, None, 0)]
)
def test_there_are_no_more_previews_than_steps_between(client, steps, asked, sent):
    fields = {} if asked is None else {"partial_images": asked}
    events = streamed(client, **fields, extra_body={"num_inference_steps": steps})
    assert len(events) == sent + 1


def test_several_pictures_in_one_stream(client, server):
    events = streamed(client, n=3, partial_images=1, output_format="webp", extra_body={"seed": 20})
    completed = {event.image_index: event for event in events if event.type.endswith("completed")}
    assert {number: event.seed for number, event in completed.items()} == {0: 20, 1: 21, 2: 22}
    partials = [event.image_index for event in events if event.type.endswith("partial_image")]
    assert sorted(partials) == [0, 1, 2]
    for event in events:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).format == "WEBP"


def test_the_lines_are_those_of_server_sent_events(server):
    with server.http.stream(
        "POST", ROUTE, json={"prompt": "a fox", "stream": True, "partial_images": 1}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        text = response.read().decode()
    blocks = text.removesuffix("\n\n").split("\n\n")
    assert len(blocks) == 2
    for block in blocks:
        event, data = block.split("\n")
        kind = json.loads(data.removeprefix("data: "))["type"]
        assert event == f"event: {kind}"


def test_what_is_refused_has_its_own_status(client):
    with pytest.raises(openai.BadRequestError) as caught:
        streamed(client, n=11)
    assert caught.value.param == "n"


LONG = {"prompt": "a fox", "n": 10, "num_inference_steps": 16, "size": "96x64", "seed": 1}


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leave(server, fields, *, stream):
    """Ask, wait a moment or, of a stream, until something came; close the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(fields).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            assert connection.recv(1)
        else:
            time.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_remaining_steps(server, stream):
    names = ("cancelled", "steps_saved")

    def counts():
        return [server.metric(f"cdm_engine_{name}_total", model="tiny") for name in names]

    def left():
        """Whether it was in the middle of the work, which is over in a tenth of a second."""
        leave(server, fields, stream=stream)
        cancelled, saved = (now - then for now, then in zip(counts(), before, strict=True))
        return saved > cancelled > 0

    before = counts()
    fields = LONG | ({"stream": True, "partial_images": 3} if stream else {})
    wait_until(left)
    wait_until(lambda: not server.metric("cdm_serve_pictures_in_flight"))
    wait_until(lambda: not server.metric("cdm_engine_waiting", model="tiny"))
    server.picture("a fox", 1, 1)


def test_half_a_goodbye_is_a_goodbye(server):
    """Who closes only his sending side is taken to have left: no fault, and it disturbs nobody."""
    before = server.printed.count("Traceback")
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a fox", "num_inference_steps": 16}).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    for sent in (head.encode() + body, head.encode() + body[:5], head[:20].encode()):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    server.picture("a fox", 1, 1)
    assert server.printed.count("Traceback") == before


def test_clients_that_read_or_send_slowly_hold_up_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a fox", "n": 10, "stream": True, "partial_images": 3}).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(12)]
    for number, connection in enumerate(slow):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall((head.encode() + body)[: None if number % 2 else 30])
    server.picture("a fox", 1, 4)  # while they wait
    for connection in slow:
        connection.close()
