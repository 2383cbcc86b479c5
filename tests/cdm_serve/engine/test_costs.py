import pytest

from cdm_serve.engine.costs import Costs, Curve, best_batch


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


def costs():
    step = Curve({1: 1.0}, {1: 1.5, 2: 2.0}, 2)
    return Costs(Curve({1: 0.5}), {"8x8": step}, {"8x8": Curve({1: 3.0, 2: 3.5})})


def test_costs_in_json_are_those_of_the_whole_machine():
    assert costs().to_json() == {
        "text": {"alone": 0.5, "1": 0.5},
        "8x8": {
            # One with all of it; then two lanes with one or two samples each.
            "step": {"alone": 1.0, "1": 1.0, "2": 1.5, "4": 2.0},
            "decode": {"alone": 3.0, "1": 3.0, "2": 3.5},
            "batch": 4,
        },
    }


def test_a_size_that_was_not_measured_is_estimated_by_its_pixels():
    known = costs()
    assert known.curve("step", "16x8") == Curve({1: 2.0}, {1: 3.0, 2: 4.0}, 2)
    assert known.alone("16x16", steps=2) == 8.0


def test_what_an_incoming_picture_takes():
    known = Costs(*[Curve({1: 0.5})], *[{"8x8": Curve({1: seconds})} for seconds in (1, 2, 3)])
    assert known.to_json()["8x8"]["picture"] == {"alone": 3, "1": 3}


def test_what_executions_take_corrects_what_is_told_and_not_the_batches():
    known = costs()
    for _ in range(200):
        known.observe("step", "16x8", 2, 12.0, narrow=True)
        known.observe("step", "8x8", 2, 4.0, narrow=True)
    told = known.to_json()
    guessed = {"alone": 6.0, "1": 6.0, "2": 9.0, "4": 12.0}
    assert told["16x8"]["step"] == pytest.approx(guessed, rel=1e-2)
    # One picture alone was measured alone, and what load did to others says nothing of that.
    measured = {"alone": 1.0, "1": 2.0, "2": 3.0, "4": 4.0}
    assert told["8x8"]["step"] == pytest.approx(measured, rel=1e-2)
    assert known.curve("step", "16x8").narrow[2] == 4.0
    assert known.expected("step", "8x8", 2) == pytest.approx(6.0, rel=1e-2)


def test_the_first_executions_correct_it_at_once_and_later_ones_little():
    known = costs()
    for number in range(19):
        known.observe("text", "", 1, 1.0, narrow=False)  # twice what was measured
        told = known.to_json()["text"]["1"]
        assert told == pytest.approx(0.5 * (1 + (number + 1) / (number + 2)))
    known.observe("text", "", 1, 100.0, narrow=False)
    assert told < known.to_json()["text"]["1"] < 1.2 * told
