from types import SimpleNamespace

import pytest

from cdm_serve.engine.costs import Curve
from cdm_serve.engine.policy import STAGES, Task, choose

# Two lanes make a little more than the whole machine; batches of 8 are the best of a lane.
LANES = Curve({1: 0.012}, {1: 0.02, 2: 0.03, 4: 0.05, 8: 0.09}, 2)
WHOLE = Curve({1: 0.012, 2: 0.02, 4: 0.03, 8: 0.05, 16: 0.09})


class Work(SimpleNamespace):
    __hash__ = object.__hash__

    @property
    def sample(self):
        return self


def works(count, size="64x64", rank=0.0, student="one"):
    job = SimpleNamespace(size=size)
    return [Work(rank=rank + k / 100, job=job, student=student) for k in range(count)]


def graph(stage, sample):
    """Steps are each student's own, all else is shared."""
    return sample.student if stage == "step" else stage


def decide(running=(), curve=LANES, overlaps=False, **waiting):
    waiting = {stage: waiting.get(stage, []) for stage in STAGES}
    lanes = curve.lanes if curve.narrow else 0
    return choose(waiting, running, lanes, lambda *_: curve, graph, overlaps=overlaps)


def run(stage, count, lane, size="64x64"):
    return Task(stage, size, works(count, size), lane)


@pytest.mark.parametrize(
    ("count", "batch", "lane"),
    [(1, 1, None), (2, 1, 0), (8, 4, 0), (12, 4, 0), (16, 8, 0), (40, 8, 0)],
)
def test_an_idle_machine_is_shared_by_all_but_one(count, batch, lane):
    task = decide(step=works(count))
    assert (task.stage, len(task.works), task.lane) == ("step", batch, lane)


def test_a_free_lane_takes_its_share():
    # Of 16 there are 8 in the other lane: all the rest, not half of it.
    task = decide([run("step", 8, 0)], step=works(8))
    assert (len(task.works), task.lane) == (8, 1)
    # Of 10 there are 8 waiting: the rest goes to the other lane when that is free again.
    assert len(decide([run("step", 2, 0)], step=works(8)).works) == 4


def test_what_is_short_is_not_kept_for_a_lane_that_makes_steps():
    beside = run("step", 8, 0)
    assert len(decide([beside], decode=works(8)).works) == 8
    assert len(decide(decode=works(8), step=works(8)).works) == 4
    assert len(decide([run("decode", 4, 0)], decode=works(4)).works) == 4


def test_no_lane_idles_while_anything_waits():
    task = decide([run("step", 8, 1)], decode=works(1))
    assert (task.stage, len(task.works), task.lane) == ("decode", 1, 0)


def test_prompts_come_before_decodings_before_steps():
    assert decide(text=works(1), decode=works(1), step=works(1)).stage == "text"
    assert decide(decode=works(1), step=works(4)).stage == "decode"


def test_the_whole_machine_waits_for_nobody_and_is_waited_for():
    assert decide([run("step", 1, None)], step=works(1), text=works(1)) is None
    assert decide([run("step", 8, 0), run("step", 8, 1)], text=works(1)) is None


def test_work_of_the_lowest_rank_decides_the_size():
    task = decide(step=works(8, "64x64", rank=5.0) + works(2, "96x64"))
    assert (task.size, len(task.works)) == ("96x64", 1)
    assert [work.rank for work in task.works] == [0.0]


def test_without_lanes_one_runs_after_the_other():
    task = decide(curve=WHOLE, step=works(7), decode=works(3))
    assert (task.stage, len(task.works), task.lane) == ("decode", 2, None)
    assert decide([run("decode", 2, None)], curve=WHOLE, step=works(7)) is None


def test_stages_overlap_where_that_helps_but_not_one_with_itself():
    beside = [run("decode", 2, None)]
    task = decide(beside, curve=WHOLE, overlaps=True, step=works(4), decode=works(3))
    assert (task.stage, len(task.works), task.lane) == ("step", 4, None)
    assert decide(beside, curve=WHOLE, overlaps=True, decode=works(3)) is None


def test_a_sample_is_never_decoded_twice_at_once():
    (preview,) = works(1)
    beside = [Task("decode", "64x64", [preview], 0)]
    assert decide(beside, decode=[preview]) is None
    (other,) = works(1, rank=9.0)
    assert decide(beside, decode=[preview, other]).works == [other]


def test_a_picture_is_not_decoded_before_its_previews_by_the_tiny_decoder():
    preview, other = works(2)
    assert decide(tiny_decode=[preview], decode=[preview]).stage == "tiny_decode"
    beside = [Task("tiny_decode", "64x64", [preview], 0)]
    assert decide(beside, decode=[preview]) is None
    assert decide(beside, decode=[preview, other]).works == [other]


def test_what_runs_only_on_the_whole_machine_lets_the_lanes_run_out():
    def curve(stage, sample):
        return WHOLE if stage == "text" else LANES

    waiting = {stage: [] for stage in STAGES} | {"text": works(2), "step": works(4)}
    assert choose(waiting, [run("step", 4, 1)], 2, curve, graph, overlaps=False) is None
    task = choose(waiting, [], 2, curve, graph, overlaps=False)
    assert (task.stage, len(task.works), task.lane) == ("text", 2, None)


def test_students_share_batches_of_what_is_the_same_graph():
    mixed = works(4) + works(4, student="other", rank=0.001)
    steps = decide(curve=WHOLE, step=mixed)
    assert {work.student for work in steps.works} == {"one"} and len(steps.works) == 4
    for stage in ("text", "decode"):
        assert len(decide(curve=WHOLE, **{stage: mixed}).works) == 8
