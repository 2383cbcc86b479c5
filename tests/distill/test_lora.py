"""Adapters: what is trained, and that merging keeps the function."""

import torch
from pipelines import PROMPTS

from distill.adapters import Adapter
from distill.ema import trained
from distill.lora import add_lora, merge_lora
from distill.recipe import LoraRecipe


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
    merge_lora(network)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(velocity(adapter), moved, rtol=1e-4, atol=1e-5)


def test_every_process_begins_alike(adapter: Adapter) -> None:
    import copy

    networks = [copy.deepcopy(adapter.transformer) for _ in range(2)]
    for seed, network in enumerate(networks):
        torch.manual_seed(seed)
        add_lora(network, LoraRecipe(rank=2), seed=7)
    pairs = zip(trained(networks[0]).values(), trained(networks[1]).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
