"""Schedules and noise levels: ranges, distributions, the shift."""

import pytest
import torch

from distill.schedule import (
    dynamic_schedule,
    fixed_schedule,
    uniform_index,
)


def sd3_shift(sigmas: torch.Tensor) -> torch.Tensor:
    return 3 * sigmas / (1 + 2 * sigmas)


def unshifted(sigmas: torch.Tensor) -> torch.Tensor:
    return sigmas


@pytest.mark.parametrize("stratified", [False, True])
def test_dynamic_schedules_descend_from_one_within_the_shifted_range(stratified: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(300):
        anchors = dynamic_schedule(8, 0.25, 0.95, sd3_shift, generator, stratified)
        lengths.add(len(anchors))
        assert anchors.dtype == torch.float32 and anchors[0] == 1.0
        assert (anchors.diff() <= 0).all()
        assert (anchors[1:] >= sd3_shift(torch.tensor(0.25)) - 1e-6).all()
        assert (anchors[1:] <= sd3_shift(torch.tensor(0.95)) + 1e-6).all()
    assert lengths == set(range(1, 9))


def test_independent_anchors_are_uniform_before_the_shift() -> None:
    generator = torch.Generator().manual_seed(1)
    schedules = [dynamic_schedule(28, 0.25, 0.95, unshifted, generator) for _ in range(2000)]
    interior = torch.cat([anchors[1:] for anchors in schedules])
    quantiles = torch.linspace(0.1, 0.9, 9)
    expected = 0.25 + 0.7 * quantiles
    assert (interior.quantile(quantiles) - expected).abs().max() < 0.01
    # E[N] = 14.5; 2000 draws of a standard deviation of 8.1.
    assert len(interior) / 2000 + 1 == pytest.approx(14.5, abs=0.75)


def test_stratified_anchors_fall_one_to_a_bin() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        anchors = dynamic_schedule(12, 0.02, 0.98, unshifted, generator, stratified=True)
        bins = len(anchors) - 1
        if bins:
            position = (anchors[1:].flip(0) - 0.02) / 0.96 * bins
            assert torch.equal(position.floor().clamp(0, bins - 1), torch.arange(bins).float())


def test_the_generator_decides() -> None:
    def one(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([dynamic_schedule(8, 0.25, 0.95, sd3_shift, generator) for _ in range(5)])

    assert torch.equal(one(0), one(0))
    assert one(0).tolist() != one(1).tolist()


def test_the_fixed_schedule_is_the_inference_grid() -> None:
    assert fixed_schedule(4, sd3_shift).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5])


def test_index_is_uniform_over_all_anchors() -> None:
    index = uniform_index(4, 40_000, torch.Generator().manual_seed(0))
    counts = index.bincount(minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 10_000).abs() < 400).all()


def test_a_shared_index_is_one_for_all_and_as_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([uniform_index(4, 3, generator, shared=True) for _ in range(8000)])
    assert (drawn == drawn[:, :1]).all()
    counts = drawn[:, 0].bincount(minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 2000).abs() < 180).all()
