"""The trainer's iteration: what it updates, how often, and what it costs."""

import copy
from dataclasses import replace

import pytest
import torch
from pipelines import PROMPTS

from distill.adapters import Sd3Adapter
from distill.ema import ramped_decay
from distill.objective import fake_loss
from distill.prompts import encode_prompts
from distill.recipe import LossRecipe, OptimiserRecipe, Recipe, RuntimeRecipe, ScheduleRecipe
from distill.schedule import uniform_index
from distill.trainer import Trainer


def make(adapter: Sd3Adapter, recipe: Recipe) -> Trainer:
    return Trainer(adapter, recipe, encode_prompts(adapter, PROMPTS), adapter.encode([""]))


def flat(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()]).clone()


def test_an_update_moves_student_fake_and_average_but_not_the_teacher(
    adapter: Sd3Adapter, recipe: Recipe
) -> None:
    teacher = flat(adapter.transformer)
    trainer = make(adapter, recipe)
    assert torch.equal(flat(trainer.student), teacher)
    metrics = trainer.update()
    assert trainer.updates == 1
    assert torch.equal(flat(adapter.transformer), teacher)
    student, fake = flat(trainer.student), flat(trainer.fake)
    assert not torch.equal(student, teacher) and not torch.equal(fake, teacher)
    # Decay 0.1 after the first update: nine tenths of the way to the student.
    torch.testing.assert_close(flat(trainer.average), torch.lerp(teacher, student, 0.9))
    assert ramped_decay(0, recipe.ema) == 0.1
    assert set(metrics) == {
        *("fake", "fake_gradient", "latent_mean", "latent_std"),
        *("ca", "dm", "cdm", "gradient"),
    }
    assert all(torch.isfinite(value) for value in metrics.values())


def test_the_fake_teacher_is_pulled_towards_the_student(
    adapter: Sd3Adapter, recipe: Recipe
) -> None:
    """With a rate of zero the pull alone is left: twice 1/4 of the way within one update."""
    still = OptimiserRecipe(student_rate=0.0, fake_rate=0.0)
    trainer = make(adapter, replace(recipe, optimiser=still, fake_pull=0.25))
    with torch.no_grad():
        for parameter in trainer.student.parameters():
            parameter.add_(1.0)
    start, student = flat(trainer.fake), flat(trainer.student)
    trainer.update()
    assert torch.equal(flat(trainer.student), student)
    torch.testing.assert_close(flat(trainer.fake), student + 0.75**2 * (start - student))


def test_fake_and_student_updates_alternate_two_to_one(adapter: Sd3Adapter, recipe: Recipe) -> None:
    trainer = make(adapter, recipe)
    for _ in range(3):
        trainer.update()
    student = trainer.student_optimiser.state_dict()["state"]
    fake = trainer.fake_optimiser.state_dict()["state"]
    assert {int(s["step"]) for s in student.values()} == {3}
    assert {int(s["step"]) for s in fake.values()} == {6}


def test_the_warm_up_counts_each_networks_own_steps(adapter: Sd3Adapter, recipe: Recipe) -> None:
    optimiser = OptimiserRecipe(student_rate=1.0e-3, fake_rate=2.0e-3, warmup=10)
    trainer = make(adapter, replace(recipe, optimiser=optimiser))
    trainer.update()
    trainer.update()
    assert trainer.student_optimiser.param_groups[0]["lr"] == pytest.approx(1.0e-3 * 2 / 10)
    assert trainer.fake_optimiser.param_groups[0]["lr"] == pytest.approx(2.0e-3 * 4 / 10)


def test_samples_forwarded_in_one_update(
    adapter: Sd3Adapter, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rollouts of index i each; then 1 fake pass twice, [on; off], 4 teachers, 2 fakes."""
    trainer = make(adapter, replace(recipe, batch=5, schedule=ScheduleRecipe(n_max=6)))
    calls: list[tuple[str, int, bool]] = []
    names = {
        id(adapter.transformer): "teacher",
        id(trainer.student): "student",
        id(trainer.fake): "fake",
    }
    real = Sd3Adapter.velocity

    def counting(self, model, x, sigma, condition):
        calls.append((names[id(model)], len(x), torch.is_grad_enabled()))
        return real(self, model, x, sigma, condition)

    drawn: list[int] = []
    real_rollout = trainer._rollout

    def noting(condition):
        state = trainer.host_generator.get_state()
        n = len(trainer._schedule())
        drawn.append(int(uniform_index(n, len(condition), trainer.host_generator).sum()))
        trainer.host_generator.set_state(state)
        return real_rollout(condition)

    monkeypatch.setattr(Sd3Adapter, "velocity", counting)
    monkeypatch.setattr(trainer, "_rollout", noting)
    trainer.update()
    trained = [(name, size) for name, size, gradient in calls if gradient]
    assert trained == [("fake", 5), ("fake", 5), ("student", 10)]
    rolled = sum(size for name, size, gradient in calls if name == "student" and not gradient)
    assert len(drawn) == 2 and rolled == sum(drawn)
    judged = [(name, size) for name, size, gradient in calls[-2:]]
    assert judged == [("teacher", 20), ("fake", 10)]


def test_a_state_continues_bit_for_bit(adapter: Sd3Adapter, recipe: Recipe) -> None:
    straight = make(adapter, recipe)
    straight.update()
    saved = copy.deepcopy(straight.state_dict())
    straight.update()
    resumed = make(adapter, recipe)
    resumed.load_state_dict(saved)
    resumed.update()
    assert resumed.updates == straight.updates == 2
    for part in ("student", "fake", "average"):
        assert torch.equal(flat(getattr(resumed, part)), flat(getattr(straight, part))), part
    assert torch.equal(resumed.generator.get_state(), straight.generator.get_state())


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
    ],
    ids=["ca", "dm", "cdm", "fixed", "stratified", "bf16", "one fake update"],
)
def test_every_choice_of_the_recipe_trains(
    adapter: Sd3Adapter, recipe: Recipe, changes: dict[str, object]
) -> None:
    trainer = make(adapter, replace(recipe, **changes))
    before = flat(trainer.student)
    metrics = trainer.update()
    assert all(torch.isfinite(value) for value in metrics.values())
    moved = (flat(trainer.student) - before).abs().max()
    assert 0 < moved < 1e-3
    assert {p.dtype for p in trainer.student.parameters()} == {torch.float32}


def test_weights_scale_the_gradient(adapter: Sd3Adapter, recipe: Recipe) -> None:
    """The same draws with all weights doubled: twice the gradient, the same losses."""
    one = make(adapter, recipe).update()
    two = make(adapter, replace(recipe, loss=LossRecipe(ca=2.0, dm=2.0, cdm=2.0))).update()
    assert two["gradient"].item() == pytest.approx(2 * one["gradient"].item(), rel=1e-4)
    for name in ("ca", "dm", "cdm"):
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-5)


def test_the_fake_teacher_learns_the_students_pictures(adapter: Sd3Adapter, recipe: Recipe) -> None:
    """With a student that stands still, flow matching on fixed draws gets better."""
    fast = OptimiserRecipe(student_rate=0.0, fake_rate=5e-3, warmup=1)
    trainer = make(adapter, replace(recipe, optimiser=fast, batch=8, loss=LossRecipe(1, 0, 0)))
    condition = adapter.encode(PROMPTS)
    pictures = trainer._rollout(condition).x0

    @torch.no_grad()
    def loss() -> float:
        generator = torch.Generator().manual_seed(9)
        return fake_loss(trainer.velocities.fake, pictures, condition, generator).item()

    before = loss()
    for _ in range(12):
        trainer.update()
    assert loss() < 0.9 * before
