"""The trainer's iteration: what it updates, how often, and what it costs."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from distill.adapters import Adapter
from distill.adapters.sd3 import Sd3Adapter
from distill.critic import told
from distill.errors import DistillError
from distill.networks import ramped_decay
from distill.objective import fake_loss
from distill.parallel import Processes
from distill.recipe import (
    CriticRecipe,
    LoraRecipe,
    LossRecipe,
    OptimiserRecipe,
    Recipe,
    RuntimeRecipe,
    ScheduleRecipe,
)
from distill.trainer import Trainer

Make = Callable[..., Trainer]


def flat(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def test_an_update_moves_student_fake_and_average_but_not_the_teacher(
    make: Make, adapter: Adapter, recipe: Recipe
) -> None:
    teacher = flat(adapter.transformer)
    trainer = make(recipe)
    assert torch.equal(flat(trainer.student), teacher)
    metrics = trainer.update()
    assert trainer.updates == 1
    assert torch.equal(flat(adapter.transformer), teacher)
    student, fake = flat(trainer.student), flat(trainer.fake.transformer)
    assert not torch.equal(student, teacher) and not torch.equal(fake, teacher)
    # Decay 0.1 after the first update: nine tenths of the way to the student.
    with trainer.averaged():
        torch.testing.assert_close(flat(trainer.student), torch.lerp(teacher, student, 0.9))
    assert torch.equal(flat(trainer.student), student)
    assert ramped_decay(0, recipe.ema) == 0.1
    assert set(metrics) == {
        *("fake", "fake_gradient", "latent_mean", "latent_std"),
        *("ca", "dm", "cdm", "gap", "gradient"),
    }
    assert all(torch.isfinite(value) for value in metrics.values())


def test_the_fake_teacher_is_pulled_towards_the_student(make: Make, recipe: Recipe) -> None:
    """With a rate of zero the pull alone is left: twice 1/4 of the way within one update."""
    still = OptimiserRecipe(student_rate=0.0, fake_rate=0.0)
    trainer = make(replace(recipe, optimiser=still, fake_pull=0.25))
    with torch.no_grad():
        for parameter in trainer.student.parameters():
            parameter.add_(1.0)
    fake = trainer.fake.transformer
    start, student = flat(fake), flat(trainer.student)
    trainer.update()
    assert torch.equal(flat(trainer.student), student)
    torch.testing.assert_close(flat(fake), student + 0.75**2 * (start - student))


def test_fake_and_student_updates_alternate_two_to_one(make: Make, recipe: Recipe) -> None:
    trainer = make(recipe)
    for _ in range(3):
        trainer.update()
    student = trainer.student_optimiser.adam.state_dict()["state"]
    fake = trainer.fake_optimiser.adam.state_dict()["state"]
    assert {int(s["step"]) for s in student.values()} == {3}
    assert {int(s["step"]) for s in fake.values()} == {6}


def test_the_warm_up_counts_each_networks_own_steps(make: Make, recipe: Recipe) -> None:
    optimiser = OptimiserRecipe(student_rate=1.0e-3, fake_rate=2.0e-3, warmup=10)
    trainer = make(replace(recipe, optimiser=optimiser))
    trainer.update()
    trainer.update()
    assert trainer.student_optimiser.adam.param_groups[0]["lr"] == pytest.approx(1.0e-3 * 2 / 10)
    assert trainer.fake_optimiser.adam.param_groups[0]["lr"] == pytest.approx(2.0e-3 * 4 / 10)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_samples_forwarded_in_one_update(
    make: Make, adapter: Adapter, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Rollouts of index - 1 forwards and one at the anchor, which can be half the student's pass.

    Then a fake pass, twice; [on; off], 4 teachers and 2 fakes. In parts the pass at the anchor is
    made twice, once of them with its gradient.
    """
    runtime = RuntimeRecipe(device="cpu", precision="fp32", accumulate=accumulate)
    schedule = ScheduleRecipe(n_max=6)
    trainer = make(replace(recipe, batch=6, schedule=schedule, runtime=runtime))
    calls: list[tuple[str, int, bool]] = []
    names = {
        id(trainer.teacher): "teacher",
        id(trainer.student): "student",
        id(trainer.fake.transformer): "fake",
    }
    real = Sd3Adapter.velocity

    def counting(self, model, x, sigma, condition):
        calls.append((names[id(model)], len(x), torch.is_grad_enabled()))
        return real(self, model, x, sigma, condition)

    indices: list[int] = []
    real_iteration = trainer.rng.iteration

    def noting(student):
        draws = real_iteration(student)
        indices.append(int(draws.index.sum()))
        return draws

    monkeypatch.setattr(Sd3Adapter, "velocity", counting)
    monkeypatch.setattr(trainer.rng, "iteration", noting)
    trainer.update()

    def spent(name: str, gradient: bool) -> int:
        return sum(size for who, size, graded in calls if (who, graded) == (name, gradient))

    assert len(indices) == 2
    assert spent("fake", True) == 2 * 6 and spent("student", True) == 2 * 6
    assert spent("teacher", False) == 4 * 6 and spent("fake", False) == 2 * 6
    saved = 6 if accumulate == 1 else 0
    assert spent("student", False) == sum(indices) - saved


def test_a_batch_in_parts_is_the_same_update(make: Make, recipe: Recipe) -> None:
    trainers = []
    for accumulate, checkpointing in ((1, False), (3, True)):
        runtime = RuntimeRecipe(
            device="cpu",
            precision="fp32",
            accumulate=accumulate,
            gradient_checkpointing=checkpointing,
        )
        trainers.append(make(replace(recipe, runtime=runtime)))
        trainers[-1].update()
    for part in ("student", "fake"):
        one, three = (flat(getattr(trainer, part)) for trainer in trainers)
        torch.testing.assert_close(one, three, rtol=0, atol=1e-6)


@pytest.mark.parametrize("anchor", [True, False], ids=["told", "untold"])
@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_a_state_continues_bit_for_bit(make: Make, recipe: Recipe, rank: int, anchor: bool) -> None:
    recipe = replace(recipe, lora=LoraRecipe(rank=rank), critic=CriticRecipe(anchor=anchor))
    straight = make(recipe)
    straight.update()
    saved = copy.deepcopy(straight.state_dict())
    straight.update()
    resumed = make(recipe)
    resumed.load_state_dict(saved)
    resumed.update()
    assert resumed.updates == straight.updates == 2
    for part in ("student", "fake"):
        assert torch.equal(flat(getattr(resumed, part)), flat(getattr(straight, part))), part
    for name, value in resumed.average.values.items():
        assert torch.equal(value, straight.average.values[name])
    assert torch.equal(resumed.rng.generator.get_state(), straight.rng.generator.get_state())


def test_adapters_alone_are_trained_and_kept(make: Make, recipe: Recipe) -> None:
    trainer = make(replace(recipe, lora=LoraRecipe(rank=2)))
    frozen = {n: p.clone() for n, p in trainer.student.named_parameters() if not p.requires_grad}
    trainer.update()
    after = dict(trainer.student.named_parameters())
    assert frozen and all(torch.equal(after[name], value) for name, value in frozen.items())
    state = trainer.state_dict()
    assert all("lora_" in name for name in state["student"])
    assert any(value.abs().max() > 0 for name, value in state["student"].items() if "_B" in name)


@pytest.mark.slow
def test_compiled_blocks_give_the_same_update(make: Make, recipe: Recipe) -> None:
    """The compiler needs a C++ compiler and a minute."""
    trainers = []
    for compiled in (False, True):
        runtime = RuntimeRecipe(device="cpu", precision="fp32", compile=compiled)
        trainers.append(make(replace(recipe, runtime=runtime)))
        trainers[-1].update()
    plain, compiled = (flat(trainer.student) for trainer in trainers)
    torch.testing.assert_close(plain, compiled, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": LossRecipe(ca=1.0, dm=0.0, cdm=0.0)},
        {"loss": LossRecipe(ca=0.0, dm=1.0, cdm=0.0)},
        {"loss": LossRecipe(ca=0.0, dm=0.0, cdm=2.0)},
        {"schedule": ScheduleRecipe(kind="fixed")},
        {"schedule": ScheduleRecipe(n_max=5, anchors="stratified", low=0.02, high=0.98)},
        {"runtime": RuntimeRecipe(device="cpu", precision="bf16")},
        {"fake_updates": 1},
        {"critic": CriticRecipe(anchor=False)},
        {"schedule": ScheduleRecipe(n_max=4, index="shared")},
    ],
    ids=[
        *("ca", "dm", "cdm", "fixed", "stratified", "bf16", "one fake update"),
        *("untold", "shared index"),
    ],
)
def test_every_choice_of_the_recipe_trains(
    make: Make, recipe: Recipe, changes: dict[str, object]
) -> None:
    trainer = make(replace(recipe, **changes))
    before = flat(trainer.student)
    metrics = trainer.update()
    assert all(torch.isfinite(value) for value in metrics.values())
    moved = (flat(trainer.student) - before).abs().max()
    assert 0 < moved < 1e-3
    assert {p.dtype for p in trainer.student.parameters()} == {torch.float32}
    layers = [m for m in trainer.teacher.modules() if isinstance(m, torch.nn.Linear)]
    low = trainer.recipe.runtime.precision == "bf16"
    assert {m.weight.dtype for m in layers} == {torch.bfloat16 if low else torch.float32}


def test_weights_scale_the_gradient(make: Make, recipe: Recipe) -> None:
    """The same draws with all weights doubled: twice the gradient, the same losses."""
    one = make(recipe).update()
    two = make(replace(recipe, loss=LossRecipe(ca=2.0, dm=2.0, cdm=2.0))).update()
    assert two["gradient"].item() == pytest.approx(2 * one["gradient"].item(), rel=1e-4)
    for name in ("ca", "dm", "cdm"):
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-5)


def test_the_fake_teacher_learns_the_students_pictures(make: Make, recipe: Recipe) -> None:
    """With a student that stands still, flow matching on fixed draws gets better."""
    fast = OptimiserRecipe(student_rate=0.0, fake_rate=5e-3, warmup=1)
    trainer = make(replace(recipe, optimiser=fast, batch=8, loss=LossRecipe(1, 0, 0)))
    draws = trainer.rng.iteration(student=False)
    anchors = trainer._anchors(draws, trainer.prompts.at(range(8)), graded=False)
    condition = told(anchors.condition, anchors.sigma)
    pictures = anchors.x0(anchors.velocity)

    @torch.no_grad()
    def loss() -> float:
        return fake_loss(trainer.velocities.fake, pictures, condition, draws.fake).item()

    before = loss()
    for _ in range(12):
        trainer.update()
    assert loss() < 0.9 * before


def test_a_batch_that_cannot_be_cut(make: Make, recipe: Recipe) -> None:
    runtime = RuntimeRecipe(device="cpu", accumulate=2)
    with pytest.raises(DistillError, match="batch = 3 must be a multiple of 2: 1 processes times"):
        make(replace(recipe, runtime=runtime))


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(DistillError, match=r"runtime\.device: no device nonsense here; use auto"):
        Processes("nonsense")
