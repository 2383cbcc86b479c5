"""Recipes: what is read, and what one line says about each mistake."""

from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe import LossRecipe, Recipe, ScheduleRecipe, read_recipe

MINIMAL = """
teacher = "some/teacher"
output = "out/student"
prompts = "prompts.txt"
height = 64
width = 96
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_minimal_recipe_has_the_published_values(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, MINIMAL))
    assert (recipe.teacher, recipe.height, recipe.width) == ("some/teacher", 64, 96)
    assert recipe.schedule == ScheduleRecipe("dynamic", 28, "iid", 0.25, 0.95)
    assert recipe.loss == LossRecipe(ca=1.0, dm=1.0, cdm=1.0, alpha=7.0, floor=0.1)
    optimiser = recipe.optimiser
    assert (optimiser.student_rate, optimiser.fake_rate) == (1e-5, 5e-6)
    assert (optimiser.beta1, optimiser.beta2, optimiser.weight_decay) == (0.9, 0.999, 1e-4)
    assert (optimiser.warmup, optimiser.grad_clip) == (100, 1.0)
    assert (recipe.updates, recipe.batch, recipe.fake_updates) == (2000, 16, 2)
    assert (recipe.fake_pull, recipe.ema) == (0.001, 0.999)
    assert recipe.max_sequence_length is None  # each architecture has its own


def test_a_text_length(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert read_recipe(path, ["max_sequence_length=0"]).max_sequence_length == 0
    with pytest.raises(DistillError, match=r"max_sequence_length = 'T5': expected a valid int"):
        read_recipe(path, ["max_sequence_length=T5"])
    with pytest.raises(
        DistillError, match=r"max_sequence_length = -1: expected greater than or equal to 0"
    ):
        read_recipe(path, ["max_sequence_length=-1"])


def test_tables_and_overrides(tmp_path: Path) -> None:
    text = MINIMAL + '[loss]\nca = 0\nalpha = 3\n[schedule]\nkind = "fixed"\n'
    recipe = read_recipe(
        write(tmp_path, text),
        ["loss.alpha=4.5", "output=else/where", "log.keep = 5", 'runtime.precision="fp32"'],
    )
    assert recipe.loss == LossRecipe(ca=0.0, alpha=4.5)
    assert recipe.schedule.kind == "fixed"
    assert recipe.output == "else/where"
    assert recipe.log.keep == 5
    assert recipe.runtime.precision == "fp32"
    assert isinstance(recipe.loss.ca, float)  # a whole number is a number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batches = 3", r"unknown recipe key batches; known: teacher, .*batch"),
        ("[loss]\nalhpa = 3", r"unknown recipe key loss\.alhpa; known: loss\.ca, .*loss\.alpha"),
        ("batch = 2.5", r"batch = 2\.5: expected a valid integer"),
        ("batch = true", r"batch = True: expected a valid integer"),
        ('seed = "1"', r"seed = '1': expected a valid integer"),
        ('[loss]\nca = "much"', r"loss\.ca = 'much': expected a valid number"),
        ("loss = 3", r"loss = 3: expected an object"),
        ('[schedule]\nkind = "even"', r"schedule\.kind = 'even': expected 'dynamic' or 'fixed'"),
        ("batch = 0", r"batch = 0: expected greater than or equal to 1"),
        ("updates = -1", r"updates = -1: expected greater than or equal to 0"),
        ("ema = 1.5", r"ema = 1\.5: expected less than or equal to 1"),
        ("[loss]\nfloor = 0", r"loss\.floor = 0: expected greater than 0"),
        ("[loss]\nca = nan", r"loss\.ca = nan: expected a finite number"),
        ("[schedule]\nlow = 0.9\nhigh = 0.5", r"schedule\.low = 0\.9 must not be above"),
        ("[loss]\nca = 0\ndm = 0\ncdm = 0", r"nothing to do"),
        ("batch = ", r"is no valid TOML"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DistillError, match=message) as caught:
        read_recipe(write(tmp_path, MINIMAL + text))
    assert "\n" not in str(caught.value)


def test_missing_key_file_and_bad_overrides(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="key teacher is missing"):
        read_recipe(write(tmp_path, 'output = "x"'))
    with pytest.raises(DistillError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
    path = write(tmp_path, MINIMAL)
    with pytest.raises(DistillError, match="must be key=value"):
        read_recipe(path, ["batch"])
    with pytest.raises(DistillError, match="height is no table"):
        read_recipe(path, ["height.x=1"])


def test_shipped_recipes_are_valid() -> None:
    recipes = sorted((Path(__file__).parents[2] / "distill" / "recipes").glob("*.toml"))
    assert {path.stem for path in recipes} >= {"emoji", "flux-dev", "longcat-image", "sd3-medium"}
    for path in recipes:
        assert isinstance(read_recipe(path), Recipe)
