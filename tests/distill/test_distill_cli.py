"""The command itself, as a process where the process matters."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from distill import checkpoint
from distill.cli import main
from distill.parallel import Processes
from distill.trainer import Trainer

UPDATES = 10


@pytest.fixture
def recipe_file(write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    return write_recipe(
        tmp_path,
        f"""
        updates = {UPDATES}
        batch = 8
        [schedule]
        n_max = 4
        [log]
        log_every = 1
        preview_every = 0
        checkpoint_every = 1
        [evaluation]
        every = 4
        pictures = 2
        teacher_steps = 3
        [runtime]
        device = "cpu"
        threads = 1
        """,
    )


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
# The second checkpoint is never finished.
HANGING = """
import sys, time
from distill import checkpoint, cli, distillation

saver, saved = checkpoint.state_dict_saver.save, []

def save(*arguments, **options):
    saver(*arguments, **options)
    saved.append(1)
    if len(saved) == 2:
        print("hangs", file=sys.stderr, flush=True)
        time.sleep(600)

checkpoint.state_dict_saver.save, distillation._SAME_SIGNAL = save, 0.2
sys.exit(cli.main())
"""


def start(
    *arguments: str | Path, how: tuple[str, ...] = ("-m", "distill")
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def updates_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def test_kill_9_and_resume_is_bit_for_bit_the_straight_run(
    recipe_file: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = start(recipe_file, "--run", killed)
    wait_for(process, killed / "checkpoint-00000003")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert 3 <= updates_of(checkpoint.found(killed)[-1]) < UPDATES  # it was under way
    (killed / ".checkpoint-00000004.tmp").mkdir(exist_ok=True)  # as a kill while writing leaves it
    (tmp_path / ".student.0a1b2c.tmp").mkdir()

    assert main([str(recipe_file), "--run", str(killed), "--resume"]) == 0
    assert main([str(recipe_file), "--run", str(straight)]) == 0
    name = f"checkpoint-{UPDATES:08d}"
    for part in ("__0_0.distcp", "run.json"):
        assert (killed / name / part).read_bytes() == (straight / name / part).read_bytes()
    logs = [
        [
            line.partition(', "samples_per_second"')[0]
            for line in (run / "log.jsonl").read_text().splitlines()
        ]
        for run in (straight, killed)
    ]
    assert len(logs[0]) == UPDATES + len((0, 4, 8, UPDATES)) and logs[0] == logs[1]
    assert not list(killed.glob(".*")) and not list(tmp_path.glob(".*"))
    student = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "student", text_encoder_3=None, tokenizer_3=None
    )
    assert student.transformer.config.num_layers == 2


def test_the_student_is_the_best_by_evaluation_and_the_report_says_so(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rates at which a few updates help and more of them ruin."""
    run = tmp_path / "run"
    rates = ("optimiser.student_rate=3e-3", "optimiser.warmup=0", "evaluation.every=1")
    settings = [part for rate in rates for part in ("--set", rate)]
    assert main([str(recipe_file), "--run", str(run), "--updates", "6", *settings]) == 0
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    distances = {r["update"]: r["distance"] for r in records if r.get("distance") and r["update"]}
    best = min(distances, key=distances.__getitem__)
    assert best < 6  # else the test shows nothing
    described = json.loads((tmp_path / "student" / "cdm.json").read_text())
    assert described["updates"] == best
    assert f"student after {best} of 6 updates" in capsys.readouterr().err
    assert f"after update {best}, at distance" in (run / "report.html").read_text()
    # The same as a run that ends there: what is written is that checkpoint's average.
    alone = [*settings, "--set", f"output={tmp_path / 'alone'}", "--updates", str(best)]
    assert main([str(recipe_file), "--run", str(tmp_path / "alone-run"), *alone]) == 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "alone" / weights).read_bytes() == (
        tmp_path / "student" / weights
    ).read_bytes()


def reached(recipe_file: Path, run: Path) -> int:
    """The update of the newest checkpoint, from which a continuation writes the student."""
    done = updates_of(checkpoint.found(run)[-1])
    assert main([str(recipe_file), "--run", str(run), "--resume", "--updates", str(done)]) == 0
    assert (recipe_file.parent / "student" / "cdm.json").exists()
    return done


def test_a_signal_stops_after_the_update_also_when_another_follows_it(
    recipe_file: Path, tmp_path: Path
) -> None:
    """As a terminal and a launcher send them."""
    options = ("--run", tmp_path / "run", "--updates", "10000", "--set", "log.checkpoint_every=3")
    process = start(recipe_file, *options)
    wait_for(process, tmp_path / "run" / "checkpoint-00000003")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "continue with --resume" in errors and "Traceback" not in errors
    done = reached(recipe_file, tmp_path / "run")
    assert f"stopped after update {done};" in errors


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_leaves_no_half_checkpoint(
    recipe_file: Path, tmp_path: Path
) -> None:
    process = start(recipe_file, "--run", tmp_path / "run", how=("-c", HANGING))
    while "hangs" not in (line := process.stderr.readline()):
        assert line, "it ended"
    process.send_signal(signal.SIGTERM)
    while "stopping after this update" not in (line := process.stderr.readline()):
        assert line, "the first one ended it"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGTERM and "Traceback" not in errors
    assert list((tmp_path / "run").glob(".checkpoint*"))  # where it stood is dropped by the next
    assert reached(recipe_file, tmp_path / "run") == 1
    assert not list((tmp_path / "run").glob(".checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_passes_a_signal_on_and_all_stop_after_the_same_update(
    recipe_file: Path, tmp_path: Path, number: int
) -> None:
    options = ("--folder", tmp_path / "run", "--updates", "10000")
    process = start("-m", "distill", recipe_file, *options, how=TORCHRUN)
    wait_for(process, tmp_path / "run" / "checkpoint-00000001")
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode
    done = reached(recipe_file, tmp_path / "run")
    assert f"stopped after update {done};" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "bacth=3"], "unknown recipe key bacth"),
        (["--set", "prompts=nowhere.txt"], "prompt file nowhere.txt cannot be read"),
        (["--set", "teacher=/nowhere/teacher"], "/nowhere/teacher is no folder here"),
        (["--set", "height=60"], "size 64x60: width and height must be positive multiples of 8"),
        (["--set", "runtime.device=tpu"], "device tpu"),
    ],
)
def test_mistakes_exit_with_2_and_one_line(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message
) -> None:
    assert main([str(recipe_file), "--run", str(tmp_path / "run"), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("cdm-distill: error: ") and errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "run").exists() and not (tmp_path / "student").exists()


def test_out_of_memory_is_one_line_from_the_process_that_is(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def update(trainer: Trainer) -> None:
        trainer.processes.rank = 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(Trainer, "update", update)
    monkeypatch.setattr(Processes, "main", False)
    assert (
        main([str(recipe_file), "--run", str(tmp_path / "run"), "--set", "evaluation.every=0"]) == 2
    )
    errors = capsys.readouterr().err
    assert errors.startswith("cdm-distill: error: process 1 has no memory left on cpu (CUDA out of")
    assert "raise runtime.accumulate above 1" in errors and errors.count("\n") == 1


def test_a_finished_run_is_not_overwritten(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(recipe_file), "--run", str(tmp_path / "run")]
    assert main([*arguments, "--updates", "1"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--updates", "1"]) == 2
    assert "holds checkpoints: continue with --resume" in capsys.readouterr().err
    assert main([*arguments, "--updates", "2", "--resume", "--set", "batch=4"]) == 2
    assert "batch was 8 in" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    code = "import sys; from distill.cli import main\ntry: main(['--help'])\nfinally: " + (
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "RECIPE.toml" in done.stdout
