import time

import pytest

from cdm_serve.api.errors import ApiError
from cdm_serve.api.limits import Limits


def refusal(limits, owner, images):
    with pytest.raises(ApiError) as caught:
        limits.spend(owner, images)
    return caught.value


def test_without_limits_nothing_is_refused():
    limits = Limits(None, None)
    for _ in range(1000):
        limits.spend("a", 10)


def test_the_wait_is_as_long_as_it_says():
    limits = Limits(600, None)  # ten a second
    for _ in range(600):
        limits.spend("a", 1)
    error = refusal(limits, "a", 1)
    assert error.status == 429
    milliseconds = int(error.headers["retry-after-ms"])
    assert 0 < milliseconds <= 100
    assert error.headers["retry-after"] == "1"
    time.sleep(milliseconds / 1e3)
    limits.spend("a", 1)


def test_owners_do_not_pay_for_each_other():
    limits = Limits(1, None)
    limits.spend("a", 1)
    refusal(limits, "a", 1)
    limits.spend("b", 1)


def test_a_refused_request_costs_nothing():
    limits = Limits(100, 10)
    limits.spend("a", 8)
    for _ in range(200):
        assert "images" in str(refusal(limits, "a", 3))
    limits.spend("a", 2)


def test_what_never_fits_is_a_mistake_of_the_request():
    error = refusal(Limits(None, 4), "a", 5)
    assert (error.status, error.param) == (400, "n")
