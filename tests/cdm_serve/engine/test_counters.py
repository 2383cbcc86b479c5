import threading

import numpy as np
import pytest

from cdm_serve.engine.counters import Counters, Histogram


def test_buckets_are_those_of_numpy():
    bounds = (0.1, 1.0, 10.0)
    values = np.random.default_rng(1).lognormal(0, 3, 1000)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    expected, _ = np.histogram(values, bins=[0, *bounds, np.inf])
    assert histogram.to_json()["counts"] == expected.tolist()
    assert histogram.sum == pytest.approx(values.sum())


def test_a_bound_belongs_to_the_bucket_below():
    histogram = Histogram((1.0, 2.0))
    histogram.observe(1.0)
    histogram.observe(2.0)
    histogram.observe(2.1)
    assert histogram.counts == [1, 1, 1]


def test_threads_lose_nothing():
    counters = Counters()

    def count():
        for _ in range(2000):
            counters.add("steps", 3)
            counters.observe("batch_size", 1, 2)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters["steps"] == 8 * 2000 * 3
    report = counters.to_json()
    assert report["counters"]["steps"] == 8 * 2000 * 3
    assert sum(report["histograms"]["batch_size"]["counts"]) == 8 * 2000 * 2
    assert report["histograms"]["batch_size"]["sum"] == 8 * 2000 * 3
