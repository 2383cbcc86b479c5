import pytest
from starlette.datastructures import Headers

from cdm_serve.api.deadline import seconds_allowed
from cdm_serve.api.errors import ApiError


@pytest.mark.parametrize(
    ("headers", "stream", "seconds"),
    [
        ({}, False, None),
        ({"X-Request-Timeout-Ms": "1500"}, False, 1.5),
        ({"x-request-timeout-ms": "1500"}, True, 1.5),
        ({"x-envoy-expected-rq-timeout-ms": "15000"}, False, 15.0),
        ({"x-stainless-read-timeout": "600"}, False, 600.0),
        ({"x-stainless-read-timeout": "2.5"}, False, 2.5),
        ({"x-stainless-read-timeout": "2.5"}, True, None),
        ({"x-stainless-read-timeout": "600", "x-request-timeout-ms": "10"}, False, 0.01),
        ({"x-stainless-read-timeout": "1", "x-request-timeout-ms": "5000"}, False, 1.0),
        ({"x-stainless-read-timeout": "NOT_GIVEN"}, False, None),
        ({"x-envoy-expected-rq-timeout-ms": "0"}, False, None),
    ],
)
def test_the_least_of_what_is_said(headers, stream, seconds):
    assert seconds_allowed(Headers(headers), stream=stream) == seconds


@pytest.mark.parametrize("value", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_wrong_deadline_is_refused_by_name(value):
    with pytest.raises(ApiError) as caught:
        seconds_allowed(Headers({"x-request-timeout-ms": value}), stream=False)
    assert caught.value.param == "x-request-timeout-ms"
