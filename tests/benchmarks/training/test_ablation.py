"""Two updates of two variants of a tiny teacher, through the whole command."""

import json
from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS, tiny_sd3

from benchmarks.cli import main
from benchmarks.training.ablation import STEPS, accuracy
from benchmarks.training.variants import TRAINERS, VARIANTS
from distill.adapters import Condition
from distill.flow import Anchors
from distill.recipe import read_recipe
from distill.rng import Level

RECIPE = Path("distill/recipes/emoji.toml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    tiny_sd3(folder / "teacher")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    path = folder / "recipe.toml"
    path.write_text(
        f'teacher = "{folder}/teacher"\noutput = "{folder}/student"\n'
        f'prompts = "{folder}/prompts.txt"\nheight = 64\nwidth = 64\nmax_sequence_length = 0\n'
    )
    return path


def command(recipe: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("distill", "--ablation", "--recipe", str(recipe), "--folder", str(folder)),
        *("--out", str(folder)),
        *("--set", "updates=2", "--set", "batch=2", "--set", "schedule.n_max=2", "--pictures", "4"),
        *("--only", "CDM", "CA only"),
        *more,
    ]


def test_one_command_trains_judges_and_draws_and_goes_on_where_it_was(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    assert main(command(recipe, folder)) == 0
    (path,) = folder.glob("ablation-*.json")
    results = json.loads(path.read_text())
    assert list(results["results"]) == ["teacher", "untrained", "CDM", "CA only"]
    assert results["settings"]["overrides"] == ["updates=2", "batch=2", "schedule.n_max=2"]
    for name in ("untrained", "CDM", "CA only"):
        steps = results["results"][name]["steps"]
        assert list(steps) == [str(n) for n in STEPS]
        assert all(scores["pictures"] == 4 for scores in steps.values())
    assert results["results"]["CA only"]["overrides"] == ["loss.dm=0", "loss.cdm=0"]
    student = json.loads((folder / "CA-only" / "student" / "cdm.json").read_text())
    assert student["updates"] == 2
    assert (student["recipe"]["loss"]["ca"], student["recipe"]["loss"]["dm"]) == (1.0, 0.0)
    assert not list(folder.glob("*/checkpoint-*"))
    assert "CA only" in capsys.readouterr().out

    # What is finished stays as it is; one variant more is trained.
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/scores.json")}
    assert main([*command(recipe, folder), "DM only"]) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "DM only" in json.loads(path.read_text())["results"]

    assert main(command(recipe, folder, "--set", "loss.alpha=2")) == 2
    assert "holds results with overrides" in capsys.readouterr().err


def test_no_two_variants_are_the_same() -> None:
    """Each is other overrides or another trainer; those of the recipe alone are CDM's own."""
    forms = [
        (read_recipe(RECIPE, list(overrides)), TRAINERS.get(name))
        for name, overrides in VARIANTS.items()
    ]
    assert all(forms.count(form) == 1 for form in forms)
    assert forms[list(VARIANTS).index("CDM")] == (read_recipe(RECIPE), None)


@pytest.mark.parametrize("name", TRAINERS)
def test_where_else_cdm_takes_the_student(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, velocity, noise = torch.randn(3, 2, 4, 4, 4, generator=generator)
    at = Anchors(
        x, torch.tensor([0.3, 0.9]), Condition({"prompt_embeds": torch.empty(2, 1, 1)}), velocity
    )
    level = Level(torch.tensor([0.5, 0.1]), noise)
    off = TRAINERS[name]._off_trajectory(object.__new__(TRAINERS[name]), at, level)
    sigma = {"without extrapolation": at.sigma, "Gaussian perturbation": level.sigma}[name]
    here, there = (s.view(-1, 1, 1, 1) for s in (at.sigma, level.sigma))
    picture = x - here * velocity
    expected = {"without extrapolation": x, "Gaussian perturbation": (1 - there) * picture}[name]
    if name == "Gaussian perturbation":
        expected = expected + there * noise
    torch.testing.assert_close(off.x, expected)
    assert torch.equal(off.sigma, sigma)


def test_refuses_an_unknown_variant(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(recipe, tmp_path), "GAN"]) == 2
    assert "'GAN' is unknown; known: CDM, D-DMD" in capsys.readouterr().err


def test_accuracy_leaves_out_what_was_not_asked() -> None:
    rates = {"subject": {"rate": 0.5}, "pair": {"rate": None}, "background": {"rate": 1.0}}
    assert accuracy({"accuracy": rates}) == 0.75
