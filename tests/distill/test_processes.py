"""What two processes share, how they fail together, and how little memory a network takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Once
from pipelines import PROMPTS, tiny_sd3

from distill.adapters import load_adapter
from distill.parallel import Processes
from distill.preview import FixedSamples, pictures_of
from distill.prompts import PromptStream
from distill.recipe import Recipe
from distill.trainer import Trainer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # two processes import torch, and one of them waits


def large_teacher(folder: Path) -> None:
    """A transformer of 27 million weights, in float32."""
    tiny_sd3(folder)
    pipeline: Any = load_adapter(str(folder)).pipeline
    config = dict(pipeline.transformer.config) | {
        "num_layers": 4,
        "num_attention_heads": 8,
        "attention_head_dim": 64,
        "caption_projection_dim": 512,
    }
    type(pipeline.transformer).from_config(config).save_pretrained(folder / "transformer")


@pytest.fixture(scope="module")
def together(once: Once) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of one call of two_processes, and what each process found."""
    large = once("large_teacher", large_teacher)

    def run(folder: Path) -> None:
        folder.mkdir()
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        script = [Path(__file__).with_name("two_processes.py"), folder, large]
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        paths["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, script)],
            env=os.environ | paths,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr

    folder = once("two_processes", run)
    return folder, [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


def test_waiting_for_a_process_that_writes_has_no_time_limit_of_the_arithmetics(together) -> None:
    """The main one takes twice as long as the group's collectives may."""
    _, found = together
    assert [each["waited"] for each in found] == [True, True]


def test_each_encodes_and_decodes_its_part(together) -> None:
    """Five in two processes: three each, one of them twice."""
    _, (one, other) = together
    assert one["condition"] and other["condition"]
    assert len(one["encoded"]) == len(other["encoded"]) == 3
    assert set(one["encoded"]) | set(other["encoded"]) == set(PROMPTS)
    assert one["decoded"] == other["decoded"] == 3


def test_the_parts_are_the_pictures_of_one_process(together) -> None:
    folder, _ = together
    adapter = load_adapter(str(folder / "teacher"), max_sequence_length=0)
    recipe = Recipe(teacher="", output="", prompts="", height=64, width=64, batch=2)
    stream = PromptStream(adapter, PROMPTS, 0, 9)
    trainer = Trainer(adapter, recipe, stream, stream.encode([""]), Processes("cpu"))
    latents = FixedSamples(trainer, 5).student(2)
    for rank in (0, 1):
        theirs, pictures = torch.load(folder / f"pictures-{rank}.pt")
        torch.testing.assert_close(theirs, latents, rtol=0, atol=0.05)  # bfloat16, other batches
        torch.testing.assert_close(pictures, pictures_of(trainer, theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", ["checkpoint", "student", "samples", "log"])
def test_all_end_with_the_error_of_the_one_that_fails(together, what: str) -> None:
    _, (main, other) = together
    error = main["failing"][what]
    assert "cannot be written" in error
    assert other["failing"][what] == f"process 0: {error}"


@pytest.mark.parametrize("mode", ["parallel", "sharded"])
def test_a_network_is_never_in_the_hosts_memory_as_a_whole(together, mode: str) -> None:
    """But for the main process, which writes the student in two bytes a weight.

    What both take at that, for the slices that are gathered, is a GPU's where there is one.
    """
    _, (main, other) = together
    loading = [each[mode]["loading"] for each in (main, other)]
    saving = [each[mode]["saving"] for each in (main, other)]
    assert max(map(abs, loading)) < 0.2, loading
    assert 0.9 < saving[0] - saving[1] < 1.1 and saving[1] < 0.5, saving
