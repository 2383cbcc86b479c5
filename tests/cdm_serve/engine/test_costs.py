import time

import numpy as np
import pytest

from cdm_serve.engine.costs import Costs, _sweep, best_batch, measure


@pytest.mark.parametrize(
    ("seconds", "count", "best"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 9, 4),  # a batch costs what one costs: the largest
        ({1: 1.0, 2: 1.0, 4: 1.0}, 3, 2),  # never more than there are
        ({1: 1.0, 2: 2.0, 4: 4.0}, 9, 1),  # nothing is won by a batch: answer sooner
        ({1: 1.0, 2: 1.96, 4: 3.9}, 9, 1),  # 2 % is nothing
        ({1: 1.0, 2: 1.5, 4: 4.0}, 9, 2),  # larger is slower
        ({1: 1.0, 3: 1.0}, 2, 1),
        ({1: 0.001, 2: 0.002, 4: 0.004, 8: 0.012}, 8, 8),  # up to 10 ms is nothing
    ],
)
def test_the_batch_that_makes_most(seconds, count, best):
    assert best_batch(seconds, count) == best


def machine(seconds):
    """A graph whose run takes ``seconds(batch)``; every row comes out the same."""
    tried = []

    def run(batch):
        tried.append(batch)
        time.sleep(seconds(batch))
        return np.ones((batch, 2))

    return run, tried


def test_a_small_model_is_warm_at_every_batch_that_pays():
    run, tried = machine(lambda batch: 0.05)
    seconds = _sweep(run, 6, budget=60)
    assert list(seconds) == [1, 2, 3, 4]
    assert set(tried) == {1, 2, 3, 4}
    assert all(0.05 <= spent < 0.5 for spent in seconds.values())


def test_where_batches_win_nothing_there_are_none():
    run, _ = machine(lambda batch: 0.1 * batch)
    assert list(_sweep(run, 4, budget=60)) == [1]


def test_the_budget_ends_the_search():
    run, tried = machine(lambda batch: 0.2)
    assert 1 in _sweep(run, 64, budget=1.0)
    assert max(tried) < 64


def test_a_batch_that_changes_a_picture_is_not_used():
    def run(batch):
        time.sleep(0.05)
        rows = np.ones((batch, 2), np.float32)
        if batch == 4:
            rows[3, 1] = np.nextafter(np.float32(1), np.float32(2))
        return rows

    assert 4 not in _sweep(run, 8, budget=60)


def test_measures_every_graph_at_every_size(pipeline):
    costs = measure(pipeline, most=4, budget=5)
    assert costs.step.keys() == costs.decode.keys() == {"64x64", "96x64"}
    for seconds in (costs.text, *costs.step.values(), *costs.decode.values()):
        assert seconds[1] > 0
        assert max(seconds) <= 4


def test_costs_in_json():
    costs = Costs({1: 0.5}, {"8x8": {1: 1.0, 2: 1.2}}, {"8x8": {1: 3.0}})
    assert costs.to_json() == {
        "text": 0.5,
        "8x8": {"step": {"1": 1.0, "2": 1.2}, "decode": {"1": 3.0}, "batch": 2},
    }
