"""The released layout is the same method, and the counts are what its passes add up to."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS, tiny_sd3

from benchmarks.cli import main
from benchmarks.training.cost import Units, quartiles
from benchmarks.training.released import ReleasedTrainer
from distill.adapters import load_adapter
from distill.parallel import Processes
from distill.prompts import PromptStream
from distill.recipe import Recipe, RuntimeRecipe, ScheduleRecipe
from distill.rng import Rng
from distill.trainer import Trainer

UPDATES = 4
BOTH = [Trainer, ReleasedTrainer]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("update-cost") / "teacher")


@pytest.fixture
def recipe(teacher: Path) -> Recipe:
    return Recipe(
        teacher=str(teacher),
        output="unused",
        prompts="unused",
        height=64,
        width=64,
        max_sequence_length=0,
        batch=3,
        schedule=ScheduleRecipe(n_max=6),
        runtime=RuntimeRecipe(device="cpu", precision="fp32"),
    )


def make(form: type[Trainer], recipe: Recipe) -> Trainer:
    adapter = load_adapter(recipe.teacher, max_sequence_length=0)
    stream = PromptStream(adapter, PROMPTS, recipe.seed, len(PROMPTS))
    return form(adapter, recipe, stream, stream.encode([""]), Processes("cpu"))


def counted(form: type[Trainer], recipe: Recipe) -> list[float]:
    trainer = make(form, recipe)
    units = Units([trainer.student, trainer.fake.transformer, trainer.teacher])
    totals = [0]
    for _ in range(UPDATES):
        trainer.update()
        totals.append(units.total)
    return [(b - a) / recipe.batch for a, b in pairwise(totals)]


def draws(recipe: Recipe) -> list[tuple[int, float, int, float]]:
    """Of each update N and the mean index in both of its iterations."""
    dice = Rng(recipe, (4, 16, 16), lambda sigmas: sigmas, slice(0, 3), torch.device("cpu"))
    updates = []
    for _ in range(UPDATES):
        pair = [dice.iteration(student=last) for last in (False, True)]
        n = [len(each.schedule) for each in pair]
        index = [each.index.float().mean().item() for each in pair]
        updates.append((n[0], index[0], n[1], index[1]))
    return updates


def test_both_forms_take_the_same_step(recipe: Recipe) -> None:
    """Float32: only the order of additions differs."""
    ours, released = (make(form, recipe) for form in BOTH)
    for _ in range(2):
        a, b = ours.update(), released.update()
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert b[name].item() == pytest.approx(value.item(), rel=1e-3), name
    start = torch.cat([p.flatten() for p in ours.adapter.transformer.parameters()])
    pairs = [(t.student, t.fake.transformer) for t in (ours, released)]
    for networks in zip(*pairs, strict=True):
        one, other = (
            torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks
        )
        assert (one - other).norm() < 0.01 * (one - start).norm() > 0


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_released_form_costs_what_its_passes_add_up_to(
    recipe: Recipe, recomputed: bool
) -> None:
    """Two rollouts of N; two fake passes, three of the student; four of the teacher, two fakes."""
    runtime = replace(recipe.runtime, gradient_checkpointing=recomputed)
    recipe = replace(recipe, runtime=runtime)
    trained = 4 if recomputed else 3
    expected = [first + second + 5 * trained + 4 + 2 for first, _, second, _ in draws(recipe)]
    assert counted(ReleasedTrainer, recipe) == expected


@pytest.mark.parametrize("recomputed", [False, True])
def test_ours_costs_the_indices_and_one_pass_less(recipe: Recipe, recomputed: bool) -> None:
    """The rollouts go to the index, and the last step of the second is a trained pass."""
    runtime = replace(recipe.runtime, gradient_checkpointing=recomputed)
    recipe = replace(recipe, runtime=runtime)
    trained = 4 if recomputed else 3
    expected = [first + (second - 1) + 4 * trained + 4 + 2 for _, first, _, second in draws(recipe)]
    assert counted(Trainer, recipe) == pytest.approx(expected)


def test_spread_of_known_numbers() -> None:
    spread = quartiles([1.0, 2.0, 3.0, 4.0, 10.0])
    assert (spread["low"], spread["median"], spread["high"]) == (2.0, 3.0, 4.0)
    assert (spread["mean"], spread["error"]) == (4.0, pytest.approx((50 / 4 / 5) ** 0.5, abs=1e-4))


def test_command_counts_and_times(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["distill", "--recipe", str(written(teacher, tmp_path)), "--out", str(tmp_path)]
    size = ["--set", "schedule.n_max=4", "--set", "batch=2", "--updates", "5", "--pairs", "2"]
    assert main([*command, *size]) == 0
    (path,) = tmp_path.glob("distill-*.json")
    result = json.loads(path.read_text())
    assert result["n_max"] == 4
    assert result["units_ours"]["mean"] < result["units_released"]["mean"]
    assert result["seconds_ours"]["median"] > 0
    assert result["faster"]["low"] <= result["faster"]["median"] <= result["faster"]["high"]
    assert "forwards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [("loss.cdm=0", "has CA, DM and CDM of weight 1"), ("runtime.accumulate=2", "accumulate")],
)
def test_refuses_what_was_not_released(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    recipe = ["--recipe", str(written(teacher, tmp_path)), "--out", str(tmp_path)]
    assert main(["distill", *recipe, "--set", change]) == 2
    assert said in capsys.readouterr().err


def written(teacher: Path, folder: Path) -> Path:
    """A recipe file of a quick run."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    path = folder / "recipe.toml"
    path.write_text(
        f'teacher = "{teacher}"\noutput = "{folder}/student"\n'
        f'prompts = "{folder}/prompts.txt"\nheight = 64\nwidth = 64\nmax_sequence_length = 0\n'
        '[runtime]\nprecision = "fp32"\ndevice = "cpu"\n'
    )
    return path
