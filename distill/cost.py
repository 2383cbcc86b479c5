"""What a training costs: forwards of an update, and each process's memory, from shapes alone.

One sample through one network is one unit. A trained pass is three: its backward computes two
products for the forward's one; or four, where activations are computed again.

Of memory, counted: parameters and buffers, gradients, AdamW's two moments, the student's average,
all in float32 but what of the teacher is bfloat16.
Traced: what autograd keeps of a pass, by running the real transformer on tensors without contents
(``FakeTensorMode``) for one sample and for two; the difference is what a sample costs, the rest is
what every pass costs, the weights as autocast rounds them. With gradient checkpointing that is the
blocks' inputs and, while one block is computed again, that block's share of all activations.

Left out: what the allocator wastes, kernels' workspaces, the CUDA context (one or two GB), and the
passes without gradient, which keep nothing.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from distill.adapters import Adapter
from distill.networks import add_lora, attention_kernel, blocks, outline
from distill.parallel import samples_at_once
from distill.recipe import Recipe

_FLOAT = 4


def units_per_update(recipe: Recipe) -> dict[str, float]:
    """Units of one student update for each sample of the batch, on average over the schedules."""
    loss, iterations = recipe.loss, recipe.fake_updates
    trained = 4 if recipe.runtime.gradient_checkpointing else 3
    # Of a whole batch the forward at the student's last anchor is the first half of its own pass.
    shared = loss.on_trajectory and recipe.runtime.accumulate == 1
    return {
        "rollouts": iterations * (mean_anchor(recipe) - 1) + iterations - shared,
        "fake teacher's own passes": iterations * trained,
        "student's own pass": trained * (loss.on_trajectory + bool(loss.cdm)),
        "teacher's judgement": 2 * bool(loss.ca) + bool(loss.dm) + bool(loss.cdm),
        "fake teacher's judgement": bool(loss.dm) + bool(loss.cdm),
    }


def mean_anchor(recipe: Recipe) -> float:
    """The mean of i for i ~ U{1..N}, N ~ U{1..n_max}; or N the steps of a fixed schedule."""
    if recipe.schedule.kind == "fixed":
        return (recipe.steps + 1) / 2
    return (recipe.schedule.n_max + 3) / 4


@dataclass(frozen=True)
class Footprint:
    """Of one trained network: numbers of parameters, and bytes that autograd keeps."""

    teacher_bytes: int  # parameters and buffers
    weights: int  # numbers of them in a trained network, with its adapters
    trained: int
    largest: int  # numbers of one weight
    largest_block: int
    pass_bytes: int
    sample_bytes: int
    checkpointed_sample_bytes: int


def footprint(adapter: Adapter, recipe: Recipe) -> Footprint:
    """Count and trace the adapter's transformer, as the recipe trains it; it needs no weights."""
    network = copy.deepcopy(adapter.transformer).to("meta").requires_grad_(True)
    teacher = outline(network, low=recipe.runtime.precision == "bf16")
    if recipe.lora.rank:
        add_lora(network, recipe.lora, recipe.seed)
    with FakeTensorMode():
        _pretend(network)
        one, two = (_kept(adapter, network, recipe, samples) for samples in (1, 2))
        network.enable_gradient_checkpointing()  # type: ignore[operator]
        inputs = [_kept(adapter, network, recipe, samples) for samples in (1, 2)]
        parts = blocks(network)
        return Footprint(
            teacher_bytes=sum(t.nbytes for t in (*teacher.parameters(), *teacher.buffers())),
            weights=_numbers(network),
            trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
            largest=max(p.numel() for p in teacher.parameters()),
            largest_block=max(map(_numbers, parts)),
            pass_bytes=2 * one - two,
            sample_bytes=two - one,
            checkpointed_sample_bytes=inputs[1] - inputs[0] + (two - one) // len(parts),
        )


def estimate(network: Footprint, recipe: Recipe, processes: int, sharded: bool) -> dict[str, int]:
    """Bytes in each process, by what they are for.

    Raises:
        DistillError: the batch cannot be divided among the processes.
    """
    share = samples_at_once(recipe.batch, processes, recipe.runtime.accumulate)
    slices = processes if sharded else 1
    numbers = {
        "student": network.weights,
        "fake teacher": network.weights,
        "student's average": network.trained,
        "optimiser states": 2 * 2 * network.trained,
        "gradients": network.trained,
    }
    bytes_of = {"teacher": network.teacher_bytes // slices}
    bytes_of |= {name: _FLOAT * number // slices for name, number in numbers.items()}
    if sharded:
        if recipe.runtime.accumulate > 1:  # whole until the last part is done
            bytes_of["gradients"] = _FLOAT * network.trained
        # One in use, the next one on its way.
        bytes_of["gathered blocks"] = 2 * _FLOAT * network.largest_block
    passes, samples = _graphs(recipe, share)
    checkpointed = recipe.runtime.gradient_checkpointing
    sample = network.checkpointed_sample_bytes if checkpointed else network.sample_bytes
    bytes_of["activations"] = passes * network.pass_bytes + samples * sample
    return bytes_of


def host_estimate(
    network: Footprint, adapter: Adapter, recipe: Recipe, processes: int, prompts: int | None
) -> dict[str, int]:
    """Bytes of the host's memory in each process, by what they are for; not all at a time.

    Text encoders and VAE are not among them: they are mapped from their files, once a machine.

    Args:
        network: of the adapter's transformer.
        adapter: also without weights.
        recipe: the run.
        processes: that train together.
        prompts: in the run; None where that is not known.
    """
    held = recipe.runtime.prompts_in_memory // processes
    held = held if prompts is None else min(held, prompts)
    embedding = sum(tensor.nbytes for tensor in adapter.empty_condition(1).tensors.values())
    log, evaluation = recipe.log, recipe.evaluation
    pictures = max(
        log.preview_pictures * bool(log.preview_every), evaluation.pictures * bool(evaluation.every)
    )
    student = sum(p.numel() for p in adapter.transformer.parameters())
    return {
        "prompts' embeddings": held * embedding,
        "a weight that is read or gathered": _FLOAT * network.largest,
        "pictures of a preview": 2 * _FLOAT * pictures * 3 * recipe.height * recipe.width,
        "student that is saved, main process": 2 * student,
    }


def _graphs(recipe: Recipe, share: int) -> tuple[int, int]:
    """Passes and samples whose activations are kept at the same time, at most."""
    loss = recipe.loss
    # The forward at the anchor is kept through the fake teacher's pass and the rest of its own.
    early = loss.on_trajectory and recipe.runtime.accumulate == 1
    samples = max(loss.on_trajectory + bool(loss.cdm), early + 1)
    return (2 if early else 1), samples * share


def _kept(adapter: Adapter, network: nn.Module, recipe: Recipe, samples: int) -> int:
    """Bytes that autograd keeps of a pass, besides parameters and buffers."""
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its number is not given again
        return tensor

    x = torch.empty(samples, *adapter.latent_shape(recipe.height, recipe.width))
    condition = adapter.empty_condition(samples)
    low = recipe.runtime.precision == "bf16"
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of kernels not run
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=low),
        attention_kernel(recipe.runtime.device),  # "auto" counts as a GPU
    ):
        adapter.velocity(network, x, torch.empty(samples), condition)
    return sum(storage.nbytes() for storage in kept.values())


def _pretend(network: nn.Module) -> None:
    """Tensors of the CPU instead of the meta device's: autocast does not know that."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _numbers(network: nn.Module) -> int:
    return sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
