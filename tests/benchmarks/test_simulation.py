"""The simulation against closed forms, and what must hold of any schedule."""

from itertools import pairwise
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation import Arrival, poisson, saturated, scaled, simulate
from cdm_serve.engine.costs import Costs

FREE = {1: 0.0}
SIZE = "64x64"


def costs(text: dict[int, float], step: dict[int, float], decode: dict[int, float]) -> Costs:
    return Costs(text, {SIZE: step, "96x64": step}, {SIZE: decode, "96x64": decode})


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_stage_without_batches_is_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load * service / (2 * (1 - load))."""
    service = 0.05
    arrivals = poisson(load / service, 3000.0, [1], SIZE, seed=3)
    finished = simulate(costs(FREE, {1: service}, FREE), arrivals)
    wait = fmean(request.latency for request in finished) - service
    assert wait == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_alone_it_takes_the_sum_of_its_stages() -> None:
    (only,) = simulate(costs({1: 0.1}, {1: 0.2}, {1: 0.3}), [Arrival(5.0, 4, SIZE)])
    assert only.latency == pytest.approx(0.1 + 4 * 0.2 + 0.3)


def test_two_stages_at_once_take_as_long_as_one_after_the_other() -> None:
    """The second picture's steps and the first one's decoding share the processor."""
    finished = simulate(costs(FREE, {1: 0.2}, {1: 0.2}), [Arrival(0.0, 1, SIZE)] * 2)
    assert [request.finished for request in finished] == pytest.approx([0.6, 0.8])


def test_a_batch_is_filled_and_a_latecomer_joins_at_the_next_step() -> None:
    step = {1: 0.2, 2: 0.2}
    first, second = simulate(
        costs(FREE, step, FREE), [Arrival(0.0, 3, SIZE), Arrival(0.1, 1, SIZE)]
    )
    assert (first.arrival.steps, first.finished) == (1, pytest.approx(0.4))
    assert second.finished == pytest.approx(0.6)


def test_short_ones_overtake() -> None:
    arrivals = [*[Arrival(0.0, 8, SIZE)] * 4, Arrival(0.1, 1, SIZE)]
    finished = simulate(costs(FREE, {1: 0.1}, FREE), arrivals)
    assert finished[0].arrival.steps == 1


def test_a_saturated_machine_makes_full_batches() -> None:
    step = {1: 0.1, 4: 0.2}
    assert saturated(costs(FREE, step, FREE), 8, 2, SIZE, 400) == pytest.approx(10.0, rel=0.02)


def test_twice_the_machines_halve_the_load() -> None:
    step = {1: 0.1}
    arrivals = list(poisson(15.0, 200.0, [1], SIZE, seed=1))
    one, two = (
        fmean(request.latency for request in simulate(costs(FREE, step, FREE), arrivals, machines))
        for machines in (1, 2)
    )
    assert two < 0.3 < 3.0 < one


SECONDS = st.dictionaries(st.sampled_from([1, 2, 3, 4, 8]), st.floats(0.0, 0.2)).map(
    lambda found: {1: 0.05} | found
)
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.floats(0.0, 3.0),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([SIZE, "96x64"]),
    ),
    max_size=40,
).map(lambda found: sorted(found, key=lambda arrival: arrival.time))


@settings(max_examples=100, deadline=None)
@given(SECONDS, SECONDS, SECONDS, ARRIVALS, st.integers(1, 3))
def test_nobody_is_lost_and_nobody_is_faster_than_alone(
    text: dict[int, float],
    step: dict[int, float],
    decode: dict[int, float],
    arrivals: list[Arrival],
    machines: int,
) -> None:
    measured = costs(text, step, decode)
    finished = simulate(measured, arrivals, machines)
    assert sorted(id(request.arrival) for request in finished) == sorted(map(id, arrivals))
    for request in finished:
        least = min(text.values()) + min(decode.values())
        least += request.arrival.steps * min(step.values())
        assert request.latency >= least - 1e-9
    again = simulate(measured, arrivals, machines)
    assert [request.finished for request in again] == [request.finished for request in finished]


def test_arrivals_are_poisson_and_repeat() -> None:
    arrivals = list(poisson(50.0, 400.0, [2, 8], SIZE, seed=7))
    assert arrivals == list(poisson(50.0, 400.0, [2, 8], SIZE, seed=7))
    assert len(arrivals) == pytest.approx(20000, rel=0.02)
    gaps = [b.time - a.time for a, b in pairwise(arrivals)]
    assert fmean(gap > 1 / 50 for gap in gaps) == pytest.approx(0.3679, abs=0.02)
    assert fmean(arrival.steps == 2 for arrival in arrivals) == pytest.approx(0.5, abs=0.02)


def test_scaled_costs_scale_the_time() -> None:
    measured = costs({1: 0.01}, {1: 0.02, 4: 0.04}, {1: 0.03})
    arrivals = [Arrival(0.0, 4, SIZE)] * 9
    slow = simulate(scaled(measured, 3.0), arrivals)
    fast = simulate(measured, arrivals)
    assert max(r.finished for r in slow) == pytest.approx(3 * max(r.finished for r in fast))
