import io
import json
import logging

from cdm_serve.log import REQUEST_ID, JsonFormatter


def lines(*records):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for record in records:
        record(logger)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_with_what_it_carries():
    (line,) = lines(lambda log: log.warning("so %d\nit is", 1, extra={"status": 200}))
    assert (line["level"], line["message"], line["status"]) == ("warning", "so 1\nit is", 200)
    assert line["time"].endswith("+00:00")
    assert "request_id" not in line


def test_the_request_it_belongs_to_is_said():
    token = REQUEST_ID.set("req_1")
    (line,) = lines(lambda log: log.info("x"))
    REQUEST_ID.reset(token)
    assert line["request_id"] == "req_1"


def test_an_exception_stays_in_its_line():
    try:
        raise ValueError("bad")
    except ValueError:
        (line,) = lines(lambda log: log.exception("failed"))
    assert "ValueError: bad" in line["exception"]


def test_the_servers_own_log(start, server):
    gateway = start("--triton", server.triton_address(), "--log", "json")
    gateway.wait_ready()
    headers = {"x-request-id": "shop-17", "accept": "image/png"}
    body = {"prompt": "a secret wish"}
    gateway.http.post("/v1/images/generations", json=body, headers=headers)
    gateway.http.get("/nothing")
    assert gateway.interrupt() == 0
    entries = [json.loads(line) for line in gateway.printed.splitlines()]
    (made,) = [entry for entry in entries if entry.get("request_id") == "shop-17"]
    assert (made["logger"], made["method"], made["status"]) == ("cdm_serve.access", "POST", 200)
    assert made["milliseconds"] > 0
    assert [entry["status"] for entry in entries if entry.get("path") == "/nothing"] == [404]
    assert "secret wish" not in gateway.printed
    assert {"ready", "stopped"} <= {entry["message"] for entry in entries}
