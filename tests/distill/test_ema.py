"""Averages against their closed forms."""

import pytest
import torch
from torch import nn

from distill.ema import Average, ramped_decay, trained


def test_the_ramp() -> None:
    assert ramped_decay(0, 0.999) == pytest.approx(1 / 10)
    assert ramped_decay(90, 0.999) == pytest.approx(91 / 100)
    assert ramped_decay(10**6, 0.999) == 0.999


def test_an_average_of_constants_is_a_geometric_sum() -> None:
    network, target = nn.Linear(2, 2), nn.Linear(2, 2)
    start = network.weight.detach().clone()
    average = Average(network)
    network.load_state_dict(target.state_dict())
    for _ in range(20):
        average.update(0.9)
    expected = target.weight + 0.9**20 * (start - target.weight)
    torch.testing.assert_close(average.values["weight"], expected.detach())
    assert torch.equal(network.weight, target.weight)


def test_the_network_is_its_average_within_the_context_only() -> None:
    network = nn.Linear(2, 2)
    average = Average(network)
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    moved = network.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(network.weight, before)
        raise KeyError
    assert torch.equal(network.weight, moved)
    assert torch.equal(average.values["weight"], before)


def test_frozen_parameters_are_not_averaged() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    assert set(Average(network).values) == set(trained(network)) == {"weight"}
