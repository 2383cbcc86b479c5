"""The configurations that people are told to pass to accelerate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "distill" / "accelerate"
SHAPES = {
    "one-gpu": (1, 1, "NO"),
    "eight-gpus": (1, 8, "MULTI_GPU"),
    "eight-gpus-sharded": (1, 8, "FSDP"),
    "two-machines": (2, 16, "MULTI_GPU"),
    "two-machines-sharded": (2, 16, "FSDP"),
}
SCRIPT = """
from distill.parallel import Processes
processes = Processes("cpu")
# In one piece: two processes write to one pipe.
print(f"processes {processes.count} sharded {bool(processes.sharded)}\\n", end="", flush=True)
"""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_it(path: Path) -> None:
    machines, processes, kind = SHAPES[path.stem]
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.distributed_type == kind
    if kind == "FSDP":
        assert config.fsdp_config == {"fsdp_version": 2}


@pytest.mark.slow  # as test_parallel, whose configuration has no GPU
def test_two_processes_of_the_sharded_one_run_without_a_gpu(tmp_path: Path) -> None:
    """The plain ones are not run: without GPUs accelerate starts several processes only by MPI.

    What they start is what torchrun starts in test_parallel.
    """
    text = (FOLDER / "eight-gpus-sharded.yaml").read_text()
    text = text.replace("num_processes: 8", "num_processes: 2") + "use_cpu: true\n"
    (tmp_path / "small.yaml").write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "small.yaml")]
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "script.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes 2 sharded True") == 2
