"""One tiny teacher for all tests of the package; none of them changes it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines import PROMPTS, tiny_sd3

from distill.adapters import Adapter, load_adapter
from distill.parallel import Processes
from distill.prompts import PromptStream
from distill.recipe import EvaluationRecipe, LogRecipe, Recipe, RuntimeRecipe, ScheduleRecipe
from distill.trainer import Trainer


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("distill") / "teacher")


Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_recipe(teacher: Path) -> Write:
    """A recipe file in a folder: the tiny teacher's at 64 x 64, and more keys and tables."""

    def write(folder: Path, more: str, teacher: Path = teacher, output: str = "student") -> Path:
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        path = folder / "tiny.toml"
        path.write_text(
            f'teacher = "{teacher}"\noutput = "{folder / output}"\n'
            f'prompts = "{folder / "prompts.txt"}"\n'
            f"height = 64\nwidth = 64\nmax_sequence_length = 0\n{more}"
        )
        return path

    return write


@pytest.fixture
def adapter(teacher: Path) -> Adapter:
    return load_adapter(str(teacher), max_sequence_length=0)


@pytest.fixture
def make(adapter: Adapter) -> Callable[..., Trainer]:
    """A trainer of a recipe, on this process alone."""

    def trainer(recipe: Recipe, prompts: list[str] = PROMPTS) -> Trainer:
        stream = PromptStream(adapter, prompts, recipe.seed, len(prompts))
        return Trainer(adapter, recipe, stream, stream.encode([""]), Processes("cpu"))

    return trainer


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> Recipe:
    """A quick run in float32, which compares best."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return Recipe(
        teacher=str(teacher),
        output=str(tmp_path / "student"),
        prompts=str(prompts),
        height=64,
        width=64,
        max_sequence_length=0,
        updates=2,
        batch=3,
        schedule=ScheduleRecipe(n_max=4),
        log=LogRecipe(log_every=1, preview_every=0, checkpoint_every=0),
        evaluation=EvaluationRecipe(every=0),
        runtime=RuntimeRecipe(device="cpu", precision="fp32"),
    )
