"""Averages against their closed forms."""

import pytest
import torch
from torch import nn

from distill.ema import averaged_copy, move_towards, ramped_decay


def test_the_ramp() -> None:
    assert ramped_decay(0, 0.999) == pytest.approx(1 / 10)
    assert ramped_decay(90, 0.999) == pytest.approx(91 / 100)
    assert ramped_decay(10**6, 0.999) == 0.999


def test_an_average_of_constants_is_a_geometric_sum() -> None:
    network = nn.Linear(2, 2)
    average = averaged_copy(network)
    start = average.weight.clone()
    target = nn.Linear(2, 2)
    for _ in range(20):
        move_towards(average, target, 0.1)
    expected = target.weight + 0.9**20 * (start - target.weight)
    torch.testing.assert_close(average.weight, expected.detach())
    assert not average.weight.requires_grad
    assert torch.equal(network.weight, start)  # a copy, not the network itself
