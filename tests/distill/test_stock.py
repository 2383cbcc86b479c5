"""Students' schedulers, as diffusers takes them without being told of sigmas."""

from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from pipelines import tiny_longcat, tiny_sd3

from distill.adapters import Adapter, load_adapter
from distill.stock import stock_scheduler


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return load_adapter(str(tiny_sd3(tmp_path_factory.mktemp("stock") / "teacher")))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0, 5.0])
def test_the_default_grid_is_the_even_one(adapter: Adapter, steps: int, shift: float) -> None:
    adapter.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler = stock_scheduler(adapter, steps)
    scheduler.set_timesteps(steps)
    assert scheduler.sigmas.tolist() == pytest.approx(adapter.sigmas(steps, 64, 64), abs=1e-6)


def test_a_dynamic_shift_is_left_alone(tmp_path: Path) -> None:
    longcat = load_adapter(str(tiny_longcat(tmp_path / "teacher")))
    assert stock_scheduler(longcat, 4) is longcat.pipeline.scheduler
