"""Traces as a collector receives them."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="needs the telemetry extra",
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector():
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", received
        http.shutdown()
        thread.join()


def test_a_request_is_traced_from_its_caller_to_the_engines_stages(
    start, server, collector, monkeypatch
):
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    gateway = start("--triton", server.triton_address(), "--traces")
    gateway.wait_ready()
    response = gateway.http.post(
        "/v1/images/generations",
        json={"prompt": "a fox", "n": 2, "num_inference_steps": 4},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    assert response.status_code == 200
    assert gateway.interrupt() == 0  # the last spans are sent at the end
    resources = [each for request in received for each in request.resource_spans]
    names = {
        attribute.value.string_value
        for each in resources
        for attribute in each.resource.attributes
        if attribute.key == "service.name"
    }
    assert names == {"pictures"}
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    spans = [span for span in spans if span.trace_id.hex() == TRACE]
    (request,) = [span for span in spans if span.name == "POST /v1/images/generations"]
    assert request.parent_span_id.hex() == PARENT
    pictures = [span for span in spans if span.name == "picture"]
    assert len(pictures) == 2
    by_id = {span.span_id: span for span in spans}
    for picture in pictures:
        above = by_id[picture.parent_span_id]
        while above is not request:
            above = by_id[above.parent_span_id]
        stages = [span for span in spans if span.parent_span_id == picture.span_id]
        assert {"queue", "text", "steps", "decode", "encode"} <= {span.name for span in stages}
        for span in stages:
            assert request.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= request.end_time_unix_nano
