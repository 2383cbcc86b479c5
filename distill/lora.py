"""Low-rank adapters: student and fake teacher learn a small difference from the teacher's weights.

Every linear layer inside the transformer's blocks gets one (arXiv 2106.09685).
"""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from distill.parallel import blocks
from distill.recipe import LoraRecipe


def add_lora(network: nn.Module, recipe: LoraRecipe, seed: int) -> None:
    """Put adapters into a network; afterwards they alone are trained.

    Their product starts at zero, one factor of it at random: alike in every process.
    """
    inside = {id(layer) for block in blocks(network) for layer in block.modules()}
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) in inside
    ]
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names)
    network.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)


def merge_lora(network: nn.Module) -> None:
    """Add what the adapters learnt to the weights and take the adapters out again."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer.get_base_layer())
