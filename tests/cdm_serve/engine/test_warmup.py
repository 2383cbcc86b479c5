import gc
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from cdm_serve.engine import memory
from cdm_serve.engine.job import Job
from cdm_serve.engine.manifest import COMPONENTS
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.openvino import OpenVino
from cdm_serve.engine.scheduler import Scheduler
from cdm_serve.engine.warmup import Batches, measure, sweep
from cdm_serve.errors import StartError


def swept(run, most, budget=60.0, policy="exact", lanes=0):
    batches = Batches(policy)
    machine = SimpleNamespace(lanes=[SimpleNamespace(lanes=())] * lanes)
    return sweep("a step", lambda place, batch: run(batch), machine, most, budget, batches), batches


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
    curve, _ = swept(run, 6)
    assert list(curve.wide) == [1, 2, 3, 4]
    assert set(tried) == {1, 2, 3, 4}
    assert all(0.05 <= spent < 0.5 for spent in curve.wide.values())


def test_where_batches_win_nothing_there_are_none():
    run, _ = machine(lambda batch: 0.1 * batch)
    assert list(swept(run, 4)[0].wide) == [1]


def test_the_budget_ends_the_search():
    run, tried = machine(lambda batch: 0.2)
    assert 1 in swept(run, 64, budget=0.5)[0].wide
    assert max(tried) < 64


def test_the_first_run_of_a_batch_is_not_of_the_budget():
    """It compiles, loads libraries and searches for kernels."""
    seen = set()

    def seconds(batch):
        cold = batch not in seen
        seen.add(batch)
        return 0.5 if cold else 0.01

    run, _ = machine(seconds)
    curve, _ = swept(run, 4, budget=0.3)
    assert max(curve.wide) == 4
    assert all(spent < 0.1 for spent in curve.wide.values())


def test_lanes_are_measured_all_at_once_and_the_whole_machine_for_one():
    tried = []

    def run(batch):
        tried.append(batch)
        return np.ones((batch, 2))

    curve, _ = swept(run, 8, lanes=2)
    assert (list(curve.wide), max(curve.narrow), curve.lanes) == ([1], 4, 2)
    assert max(tried) == 4


def test_a_batch_that_changes_a_picture_by_a_bit_is_not_used(caplog):
    def run(batch):
        time.sleep(0.05)
        rows = np.ones((batch, 2), np.float32)
        if batch == 4:
            rows[3, 1] = np.nextafter(np.float32(1), np.float32(2))
        return rows

    curve, batches = swept(run, 8)
    assert 4 not in curve.wide
    assert 8 in curve.wide
    assert len(batches.dropped) == 1
    assert "batch 4 for a step is not used: differs from alone by 1.2e-07" in caplog.text
    assert "the policy is exact" in caplog.text


def test_close_has_a_limit(caplog):
    def run(batch):
        time.sleep(0.05)
        rows = np.linspace(0, 1, 100, dtype=np.float32) * np.ones((batch, 1), np.float32)
        rows[1:] *= {1: 1.0, 2: 1.001}.get(batch, 1.1)
        return rows

    curve, batches = swept(run, 4, policy="close")
    assert list(curve.wide) == [1, 2]
    assert batches.largest_difference == pytest.approx(0.001, rel=0.01)
    assert 60 < batches.psnr < 70
    assert "batch 4 for a step is not used: differs from alone by 0.1" in caplog.text
    assert "close means 40 dB" in caplog.text


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA failure 2: out of memory"), Exception("bad_alloc")]
)
def test_no_memory_for_a_batch_ends_the_sweep(error, caplog):
    tried = []

    def run(batch):
        tried.append(batch)
        time.sleep(0.02)
        if batch >= 4:
            raise error
        return np.ones((batch, 2))

    curve, batches = swept(run, 16)
    assert max(curve.wide) == 2
    assert max(tried) == 4
    assert "batch 4 for a step is not used: this batch is too large" in caplog.text
    assert len(batches.dropped) == 1


def test_a_batch_that_memory_is_not_there_for_is_never_tried(monkeypatch, caplog):
    """Of amounts beside which it does not count what other tests have left, to be given back."""
    monkeypatch.setattr(memory, "available", lambda: 500 * 2**20)
    gc.collect()
    tried = []

    def run(batch):
        tried.append(batch)
        time.sleep(0.02)
        return np.ones((batch, 100 * 2**20), np.uint8)[:, :2]

    curve, batches = swept(run, 16)
    assert max(tried) == max(curve.wide) == 4
    (dropped,) = batches.dropped
    said = r"batch 8 for a step: it would take 0\.[5-9] GiB of memory, and 0\.5 are available"
    assert re.fullmatch(said, dropped)
    assert "batch 8 for a step is not used: it would take" in caplog.text


def test_another_failure_is_not_hidden():
    def run(batch):
        if batch == 2:
            raise RuntimeError("the graph has no such input")
        return np.ones((batch, 2))

    with pytest.raises(RuntimeError, match="no such input"):
        swept(run, 4)


@pytest.mark.parametrize("policy", ["exact", "close"])
def test_nan_is_called_nan(policy):
    with pytest.raises(StartError, match="a step: the graph gives NaN"):
        swept(lambda batch: np.full((batch, 2), np.nan, np.float16), 4, policy=policy)


def test_what_differs_from_run_to_run_is_served_alone():
    draw = np.random.default_rng(0)
    curve, batches = swept(lambda batch: draw.normal(size=(batch, 3)), 4)
    assert list(curve.wide) == [1]
    assert len(batches.dropped) >= 2


class Drifting(OpenVino):
    """A device whose rows depend on their company, by a thousandth, as a GPU's do."""

    overlaps = True
    batches = "close"

    def load(self, path):
        return Drift(super().load(path))


class Drift:
    lanes = ()

    def __init__(self, graph):
        self._graph = graph
        self.inputs = graph.inputs

    def run(self, inputs):
        outputs = self._graph.run(inputs)
        if "velocity" in outputs and len(outputs["velocity"]) > 1:
            outputs["velocity"] = outputs["velocity"] * np.float32(1.001)
        return outputs


@pytest.mark.parametrize(
    ("policy", "most"),
    [pytest.param("auto", 8, marks=pytest.mark.slow), ("close", 8), ("exact", 1)],
)
def test_rows_that_depend_on_their_company(manifest, policy, most, caplog):
    """Are batched if close is close enough, and not if they must be exact."""
    components = {name: manifest.components[name] for name in COMPONENTS}
    manifest = replace(manifest, sizes=("64x64",), components=components)
    pipeline = Pipeline(manifest, Drifting("auto"))
    costs, batches = measure(pipeline, 8, 0.3, policy)
    assert batches.policy == ("exact" if policy == "exact" else "close")
    scheduler = Scheduler(pipeline, costs, 2**20)
    reports = []
    for seed in range(24):
        scheduler.submit(str(seed), Job("a fox", seed, 8, "64x64"), reports.append)
    scheduler.close()
    largest = max(max(picture.report["batches"]) for picture in reports)
    if policy == "exact":
        assert largest == 1
        assert "batch 2 for a step at 64x64 is not used: differs from alone by 0.001" in caplog.text
        assert batches.gauges()["batches_dropped"] >= 2
    else:
        assert 1 < largest <= most
        assert batches.largest_difference == pytest.approx(0.001, rel=0.05)
        assert not any("a step" in line for line in batches.dropped)


def test_measures_every_graph_at_every_size(pipeline):
    costs, batches = measure(pipeline, most=4, budget=0.3)
    assert (batches.policy, batches.dropped, batches.psnr) == ("exact", [], None)
    for stage in ("text", "step", "decode", "tiny_decode"):
        for size in ("64x64", "96x64") if stage != "text" else ("",):
            curve = costs.curve(stage, size)
            assert curve.wide[1] > 0
            assert max(curve.together) <= 4


def test_an_unknown_policy_is_refused(pipeline):
    with pytest.raises(StartError, match="batches: 'near' is none of auto, exact, close"):
        measure(pipeline, 4, 5, "near")
