"""The counted forwards against a trainer at work; the memory against autograd and the optimiser."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS, tiny_sd3
from torch.autograd.graph import saved_tensors_hooks

from distill.adapters import Adapter, load_adapter, load_skeleton
from distill.cost import estimate, footprint, mean_anchor, units_per_update
from distill.errors import DistillError
from distill.parallel import Processes
from distill.recipe import (
    CriticRecipe,
    LoraRecipe,
    LossRecipe,
    Recipe,
    RuntimeRecipe,
    ScheduleRecipe,
)
from distill.trainer import Trainer

CPU = RuntimeRecipe(device="cpu", precision="fp32")


def test_the_published_recipe_costs_36_5() -> None:
    """cf. 55 with full rollouts and separate passes."""
    recipe = Recipe(teacher="", output="", prompts="", height=8, width=8)
    recipe = replace(recipe, runtime=RuntimeRecipe(gradient_checkpointing=True))
    assert sum(units_per_update(recipe).values()) == 36.5


def test_the_mean_anchor_is_that_of_all_equally_likely_draws(recipe: Recipe) -> None:
    for most in (1, 4, 28):
        means = [sum(range(1, n + 1)) / n for n in range(1, most + 1)]
        dynamic = replace(recipe, schedule=ScheduleRecipe(n_max=most))
        assert mean_anchor(dynamic) == pytest.approx(sum(means) / most)
    assert mean_anchor(replace(recipe, steps=4, schedule=ScheduleRecipe(kind="fixed"))) == 2.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": LossRecipe(ca=1, dm=0, cdm=0)},
        {"loss": LossRecipe(ca=0, dm=1, cdm=0)},
        {"loss": LossRecipe(ca=0, dm=0, cdm=1)},
        {"fake_updates": 3},
        {"runtime": replace(CPU, accumulate=3)},
        {"runtime": replace(CPU, gradient_checkpointing=True)},
    ],
    ids=["all", "ca", "dm", "cdm", "three fake updates", "parts", "recomputed"],
)
def test_a_trainer_does_what_was_counted(
    make: Callable[..., Trainer], recipe: Recipe, changes: dict[str, object]
) -> None:
    """With one anchor nothing is left to chance. A trained pass counts three, or four."""
    plan = replace(recipe, schedule=ScheduleRecipe(n_max=1), **changes)
    trainer = make(plan)
    total = 0
    trained = 4 if plan.runtime.gradient_checkpointing else 3
    real = trainer.adapter.velocity

    def counting(model, x, sigma, condition):
        nonlocal total
        total += len(x) * (trained if torch.is_grad_enabled() else 1)
        return real(model, x, sigma, condition)

    trainer.adapter.velocity = counting
    trainer.update()
    assert total == plan.batch * sum(units_per_update(plan).values())


CPU = RuntimeRecipe(device="cpu", precision="fp32")


def bytes_of(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def skeleton(recipe: Recipe) -> Adapter:
    return load_skeleton(recipe.teacher, recipe.max_sequence_length)


def test_a_skeleton_has_the_adapters_shapes_and_no_weights(
    adapter: Adapter, recipe: Recipe
) -> None:
    bare = skeleton(recipe)
    networks, expected = bare.networks, adapter.networks
    assert networks.keys() == expected.keys()
    for name, network in networks.items():
        assert {p.device.type for p in network.parameters()} == {"meta"}
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert shapes == {k: v.shape for k, v in expected[name].state_dict().items()}
    assert bare.latent_shape(64, 96) == adapter.latent_shape(64, 96)
    assert bare.sigmas(4, 64, 64) == adapter.sigmas(4, 64, 64)


@pytest.mark.parametrize("t5", [False, True])
def test_the_embeddings_have_the_encoders_shape(tmp_path: Path, t5: bool) -> None:
    folder = str(tiny_sd3(tmp_path / "teacher", t5=t5))
    real = load_adapter(folder, max_sequence_length=16).encode(PROMPTS[:2])
    empty = load_skeleton(folder, 16).empty_condition(2)
    shapes = {name: tensor.shape for name, tensor in empty.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in real.tensors.items()}


@pytest.mark.parametrize(
    ("lora", "precision"), [(0, "fp32"), (4, "bf16")], ids=["all weights", "lora"]
)
def test_what_can_be_counted_is_what_a_trainer_holds(
    make: Callable[..., Trainer], recipe: Recipe, lora: int, precision: str
) -> None:
    # The anchor's embedding, a few thousand weights, is left out.
    plan = replace(recipe, lora=LoraRecipe(rank=lora), critic=CriticRecipe(anchor=False))
    plan = replace(plan, runtime=replace(CPU, precision=precision))
    found = estimate(footprint(skeleton(plan), plan), plan, processes=1, sharded=False)
    trainer = make(plan)
    gradients = 0
    real = trainer.processes.average_gradients

    def noting(network: torch.nn.Module) -> None:
        nonlocal gradients
        gradients = bytes_of(p.grad for p in network.parameters() if p.grad is not None)
        real(network)

    trainer.processes.average_gradients = noting
    trainer.update()
    networks = {
        "teacher": trainer.teacher,
        "student": trainer.student,
        "fake teacher": trainer.fake,
    }
    for name, network in networks.items():
        assert found[name] == bytes_of([*network.parameters(), *network.buffers()]), name
    assert found["student's average"] == bytes_of(trainer.average.values.values())
    assert found["gradients"] == gradients
    moments = [
        state[key]
        for optimiser in (trainer.student_optimiser, trainer.fake_optimiser)
        for state in optimiser.adam.state_dict()["state"].values()
        for key in ("exp_avg", "exp_avg_sq")
    ]
    assert found["optimiser states"] == bytes_of(moments)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps_of_a_real_pass(
    make: Callable[..., Trainer], recipe: Recipe, precision: str
) -> None:
    """The fake teacher's pass beside the student's early one: two passes of the whole batch."""
    plan = replace(recipe, batch=5, runtime=replace(CPU, precision=precision))
    traced = footprint(skeleton(plan), plan)
    trainer = make(plan)
    own = {
        t.untyped_storage().data_ptr()
        for network in (trainer.student, trainer.fake)
        for t in (*network.parameters(), *network.buffers())
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    condition = trainer.prompts.at(range(5))
    x, sigma = torch.randn(5, *trainer.latent_shape), torch.rand(5)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [v(x, sigma, condition) for v in (trainer.velocities.student,) * 2]
    assert all(output.requires_grad for output in outputs)
    found = estimate(traced, plan, 1, False)["activations"]
    # The inputs are given twice here and counted in each pass there.
    assert found == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.01)


def test_recomputing_keeps_less(recipe: Recipe) -> None:
    plan = replace(recipe, runtime=replace(CPU, gradient_checkpointing=True))
    traced = footprint(skeleton(plan), plan)
    assert traced.checkpointed_sample_bytes < traced.sample_bytes
    kept, less = (
        estimate(traced, replace(plan, runtime=replace(CPU, gradient_checkpointing=on)), 1, False)
        for on in (False, True)
    )
    assert less.pop("activations") < kept.pop("activations")
    assert less == kept


def test_processes_share_the_batch_and_shards_the_rest(recipe: Recipe) -> None:
    plan = replace(recipe, batch=16)
    traced = footprint(skeleton(plan), plan)
    alone = estimate(traced, plan, 1, False)
    parallel, sharded = estimate(traced, plan, 4, False), estimate(traced, plan, 4, True)
    assert alone["activations"] > 3.9 * parallel["activations"]
    assert parallel["activations"] == sharded["activations"]
    for name in ("teacher", "student", "optimiser states", "gradients"):
        assert alone[name] == parallel[name] == 4 * sharded[name]
    in_parts = replace(plan, runtime=replace(CPU, accumulate=2))
    # Without the early pass, [on; off] together: as many samples as two passes of half the batch.
    halves = estimate(traced, in_parts, 1, False)
    assert halves["activations"] == 16 * traced.sample_bytes + traced.pass_bytes


def test_a_batch_that_cannot_be_shared_is_refused_as_the_training_does(recipe: Recipe) -> None:
    traced = footprint(skeleton(recipe), recipe)
    with pytest.raises(DistillError) as here:
        estimate(traced, recipe, 2, False)
    processes = Processes("cpu")
    processes.count = 2
    with pytest.raises(DistillError) as there:
        processes.rows(recipe.batch, 1)
    assert str(here.value) == str(there.value)
