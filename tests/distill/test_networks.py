"""AdamW steps and averages against their formulas; low-rank adapters and their merging."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import (
    PROMPTS,
    tiny_flux,
    tiny_klein,
    tiny_longcat,
    tiny_qwen_image,
    tiny_sd3,
    tiny_z_image,
)
from torch import nn

from distill.adapters import Adapter, load_adapter
from distill.networks import (
    Average,
    Optimiser,
    add_lora,
    merged,
    outline,
    ramped_decay,
    rate_factor,
    trained,
)
from distill.parallel import Processes
from distill.recipe import LoraRecipe, OptimiserRecipe


def test_three_steps_match_the_formula_with_warmup_decay_and_clipping() -> None:
    recipe = OptimiserRecipe(warmup=2, weight_decay=0.1, grad_clip=0.5)
    network = nn.Linear(3, 1, bias=False)
    optimiser = Optimiser(network, recipe, 1e-2, 3)
    w = network.weight.detach().double().clone()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    inputs = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
    for k in range(3):
        network(inputs[k]).square().mean().backward()
        norm = optimiser.step(k)
        x = inputs[k].double()
        gradient = 2 * (x @ w.T).T @ x / 5
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        gradient = gradient * min(1.0, 0.5 / gradient.norm())
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 1e-2 * min(1.0, (k + 1) / 2)
        w = w * (1 - rate * 0.1)
        w = w - rate * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
        torch.testing.assert_close(network.weight.detach().double(), w, rtol=1e-5, atol=1e-6)
    assert network.weight.grad is None


def test_the_rate_rises_holds_and_falls_along_half_a_cosine() -> None:
    recipe = OptimiserRecipe(warmup=4, decay=0.5)
    factors = [rate_factor(done, 20, recipe) for done in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:11] == [1.0] * 7
    assert factors[15] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True) and 0 < factors[-1] < 0.03
    assert rate_factor(10**6, 20, replace(recipe, decay=0.0)) == 1.0


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


def velocity(adapter: Adapter) -> torch.Tensor:
    x = torch.randn(2, *adapter.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    condition = adapter.encode(PROMPTS[:2])
    with torch.no_grad():
        return adapter.velocity(adapter.transformer, x, torch.tensor([0.3, 0.9]), condition)


def test_adapters_start_as_the_teacher_and_merge_into_its_layers(adapter: Adapter) -> None:
    network = adapter.transformer
    names, before = set(network.state_dict()), velocity(adapter)
    linears = sum(isinstance(m, torch.nn.Linear) for m in network.transformer_blocks.modules())
    add_lora(network, LoraRecipe(rank=2, alpha=4.0), seed=0)
    assert torch.equal(velocity(adapter), before)
    parameters = trained(network)
    assert len(parameters) == 2 * linears
    assert all("lora_" in name for name in parameters)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    moved = velocity(adapter)
    assert not torch.allclose(moved, before, atol=1e-3)
    weights = dict(merged(network))
    assert set(weights) == names
    plain = outline(network.from_config(network.config))
    plain.load_state_dict(weights, assign=True)
    adapter.pipeline.transformer = plain
    torch.testing.assert_close(velocity(adapter), moved, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(
    "tiny", [tiny_sd3, tiny_longcat, tiny_flux, tiny_klein, tiny_qwen_image, tiny_z_image]
)
def test_a_teacher_of_half_the_memory_gives_the_same_bits(
    tiny: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Also where its files are mapped in their own type."""
    adapter = load_adapter(str(tiny(tmp_path)), None, None)
    whole, low = (outline(adapter.transformer, low) for low in (False, True))
    size = {}
    for network in (whole, low):
        Processes("cpu").place(network, adapter.transformer.state_dict())
        size[network] = sum(p.numel() * p.element_size() for p in network.parameters())
    assert size[low] < 0.6 * size[whole]
    shape = adapter.latent_shape(64, 64)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    condition, sigma = adapter.encode(PROMPTS[:2]), torch.tensor([0.3, 0.9])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        both = [adapter.velocity(network, x, sigma, condition) for network in (whole, low)]
    assert torch.equal(*both)


def test_every_process_begins_alike(adapter: Adapter) -> None:
    import copy

    networks = [copy.deepcopy(adapter.transformer) for _ in range(2)]
    for seed, network in enumerate(networks):
        torch.manual_seed(seed)
        add_lora(network, LoraRecipe(rank=2), seed=7)
    pairs = zip(trained(networks[0]).values(), trained(networks[1]).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
