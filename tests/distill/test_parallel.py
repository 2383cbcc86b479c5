"""Two processes against one, with the launchers that people use."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.cli import main
from distill.errors import DistillError
from distill.parallel import Processes

TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")
SHARDED = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: "no"
"""


@pytest.fixture(scope="module")
def recipe_file(
    write_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("parallel"),
        """
        updates = 2
        batch = 4
        [schedule]
        n_max = 3
        index = "shared"
        [optimiser]
        warmup = 1
        student_rate = 1e-3
        [log]
        log_every = 1
        preview_every = 0
        checkpoint_every = 1
        [evaluation]
        every = 0
        [runtime]
        device = "cpu"
        precision = "fp32"
        threads = 1
        """,
        output="alone",
    )


@pytest.fixture(scope="module")
def alone(recipe_file: Path) -> Path:
    """The student of one process with the whole batch."""
    assert main([str(recipe_file), "--folder", str(recipe_file.parent / "run-alone")]) == 0
    return recipe_file.parent / "alone"


def launch(launcher: tuple[str, ...], recipe: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "distill", str(recipe), *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def transformer(student: Path) -> dict[str, torch.Tensor]:
    return load_file(student / "transformer" / "diffusion_pytorch_model.safetensors")


def assert_same_student(student: Path, expected: Path, teacher: Path) -> None:
    """As far from each other as a hundredth of the way they came from the teacher.

    All weights together: Adam turns a gradient that is nearly zero into a whole step, whichever
    sign the rounding leaves it.
    """
    weights, reference, start = (
        torch.cat([weight.float().flatten() for _, weight in sorted(transformer(folder).items())])
        for folder in (student, expected, teacher)
    )
    apart, moved = (weights - reference).norm(), (reference - start).norm()
    assert moved > 0 and apart <= 0.01 * moved, (apart.item(), moved.item())


@pytest.mark.slow
def test_two_processes_train_the_student_of_one_with_the_same_batch(
    recipe_file: Path, alone: Path, teacher: Path
) -> None:
    """Each process's half of the batch in two parts, at that."""
    name = "two"
    folder = recipe_file.parent
    launch(
        TORCHRUN,
        recipe_file,
        *("--folder", str(folder / f"run-{name}"), "--set", f"output={folder / name}"),
        *("--set", "runtime.accumulate=2"),
    )
    assert_same_student(folder / name, alone, teacher)


@pytest.mark.slow
def test_sharded_networks_train_save_resume_and_export_the_same_student(
    recipe_file: Path, alone: Path, teacher: Path
) -> None:
    folder = recipe_file.parent
    (folder / "sharded.yaml").write_text(SHARDED)
    launcher = ("accelerate.commands.launch", "--config_file", str(folder / "sharded.yaml"))
    run = folder / "run-sharded"
    arguments = ("--folder", str(run), "--set", f"output={folder / 'sharded'}")
    launch(launcher, recipe_file, *arguments, "--updates", "1")
    parts = sorted(path.name for path in (run / "checkpoint-00000001").glob("*.distcp"))
    assert parts == ["__0_0.distcp", "__1_0.distcp"]
    said = launch(launcher, recipe_file, *arguments, "--resume")
    assert "continuing from" in said
    assert_same_student(folder / "sharded", alone, teacher)


@pytest.mark.slow
def test_adapters_train_sharded_and_go_on_alone(recipe_file: Path, teacher: Path) -> None:
    """LoRA under FSDP2; its checkpoint is then continued by a single process."""
    folder = recipe_file.parent
    (folder / "sharded.yaml").write_text(SHARDED)
    launcher = ("accelerate.commands.launch", "--config_file", str(folder / "sharded.yaml"))
    lora = ("--set", "lora.rank=2")
    arguments = ("--folder", str(folder / "run-lora"), "--set", f"output={folder / 'lora'}", *lora)
    launch(launcher, recipe_file, *arguments, "--updates", "1")
    assert main([str(recipe_file), *arguments, "--resume"]) == 0
    straight = ("--folder", str(folder / "run-lora-1"), "--set", f"output={folder / 'lora-1'}")
    assert main([str(recipe_file), *straight, *lora]) == 0
    assert_same_student(folder / "lora", folder / "lora-1", teacher)


def test_rows_are_shared_out_evenly() -> None:
    processes = Processes("cpu")
    processes.count = 4
    seen = []
    for processes.rank in range(4):
        seen += list(range(24))[processes.rows(24, parts=3)]
    assert seen == list(range(24))
    with pytest.raises(DistillError, match="batch = 28 must be a multiple of 12: 4 processes"):
        processes.rows(28, parts=3)


@pytest.mark.slow
def test_fsdp_needs_a_shared_index(recipe_file: Path) -> None:
    """Every process must make the same forwards; the message says which key to set."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", *TORCHRUN, "-m", "distill", str(recipe_file)),
            *(
                "--folder",
                str(recipe_file.parent / "refused"),
                "--set",
                "schedule.index=per_sample",
            ),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    assert "recipe key schedule.index must be 'shared' with FSDP" in done.stderr
