"""What test_processes looks at, run by torchrun in two processes; each writes its findings."""

import gc
import json
import os
import re
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pipelines import PROMPTS, tiny_sd3
from torch.distributed.tensor import DTensor

from distill import checkpoint
from distill.distillation import trainer_of
from distill.errors import DistillError
from distill.evaluation import Evaluation
from distill.log import RunLog
from distill.parallel import Processes
from distill.preview import FixedSamples, pictures_of
from distill.recipe import EvaluationRecipe, LogRecipe, Recipe, RuntimeRecipe, ScheduleRecipe
from distill.student import save_student
from distill.trainer import Trainer
from distill.training import train

IMPATIENT = 1.0  # seconds


def status(key: str) -> int:
    """Of this process's memory: ``VmHWM``, the most it had, or ``VmRSS``, what it has."""
    return 1024 * int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


class Peak:
    """Memory that was taken in the context at most, above what was there before."""

    def __enter__(self) -> "Peak":
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the most from now on
        self.before = status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = status("VmHWM") - self.before


def on_the_device(trainer: Trainer) -> int:
    """Bytes that a GPU would hold, which here are in the process's memory too."""
    networks = (trainer.student, trainer.fake, trainer.teacher)
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    tensors += trainer.average.values.values()
    whole = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in whole)


def measure(recipe: Recipe, processes: Processes, sharded: bool) -> dict[str, float]:
    """Host memory over the network's size in bfloat16, while it is loaded and while it is saved."""
    processes.sharded = sharded
    with Peak() as loading:
        trainer = trainer_of(recipe, processes)
    network = 2 * sum(p.numel() for p in trainer.adapter.transformer.parameters())
    found = {"loading": (loading.taken - on_the_device(trainer)) / network}
    if sharded:
        trainer.update()  # with the two types of the teacher's weights
    with Peak() as saving:
        save_student(trainer)
    return found | {"saving": saving.taken / network}


def failing(trainer: Trainer, folder: Path) -> dict[str, str]:
    """What each of the things that one process does alone ends with, where it cannot."""
    said = {}
    trainer.recipe = replace(trainer.recipe, output=str(folder / "file" / "student"))
    (folder / "file").write_text("no folder")
    for name, work in {
        "checkpoint": lambda: checkpoint.save(folder / "file" / "run", trainer, keep=1),
        "student": lambda: save_student(trainer),
        "samples": lambda: Evaluation(trainer, folder / "file" / "run"),
    }.items():
        try:
            work()
        except DistillError as error:
            said[name] = str(error)
    log = RunLog(folder / "run", 0, trainer.processes.main)
    if trainer.processes.main:
        log.path.unlink()
        log.path.mkdir()
    try:
        train(trainer, folder / "run", log, lambda record: None, lambda: False)
    except DistillError as error:
        said["log"] = str(error)
    return said


def divided(recipe: Recipe, processes: Processes, folder: Path) -> dict[str, object]:
    """Prompts, previews and failures of a small run."""
    found: dict[str, object] = {}
    trainer = trainer_of(recipe, processes)
    encoded: list[str] = []
    encode = trainer.adapter.encode
    trainer.adapter.encode = lambda prompts: encoded.extend(prompts) or encode(prompts)
    decoded: list[int] = []
    decode = trainer.adapter.decode
    trainer.adapter.decode = lambda latents: decoded.append(len(latents)) or decode(latents)

    condition = trainer.prompts.at(range(processes.rank, processes.rank + 1))
    expected = encode([PROMPTS[i] for i in torch.randperm(5, generator=_seeded()).tolist()])
    row = {name: t[processes.rank] for name, t in expected.tensors.items()}
    found["condition"] = all(
        torch.allclose(condition.tensors[name][0], row[name], atol=1e-5) for name in row
    )
    found["encoded"] = sorted(encoded)
    latents = FixedSamples(trainer, 5).student(2)
    pictures = pictures_of(trainer, latents)
    found["decoded"] = sum(decoded)
    torch.save((latents, pictures), folder / f"pictures-{processes.rank}.pt")
    found["failing"] = failing(trainer, folder)
    return found


def main(folder: Path, large: str) -> None:
    """Each finding under its name."""
    (folder / f"here-{os.environ['RANK']}").touch()
    while len(list(folder.glob("here-*"))) < 2:  # one imports faster than the other
        time.sleep(0.01)
    dist.init_process_group("gloo", timeout=timedelta(seconds=IMPATIENT))
    processes = Processes("cpu")
    found: dict[str, object] = {}
    if processes.main:
        time.sleep(2 * IMPATIENT)  # as one that writes a large checkpoint
    processes.wait()
    found["waited"] = True

    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    with processes.together():
        if processes.main:
            tiny_sd3(folder / "teacher")
    recipe = Recipe(
        teacher=str(folder / "teacher"),
        output=str(folder / "student"),
        prompts=str(folder / "prompts.txt"),
        height=64,
        width=64,
        max_sequence_length=0,
        batch=2,
        updates=1,
        schedule=ScheduleRecipe(index="shared"),
        log=LogRecipe(log_every=1, preview_every=0),
        evaluation=EvaluationRecipe(every=0, pictures=5, teacher_steps=2),
        runtime=RuntimeRecipe(device="cpu", prompts_in_memory=10),
    )
    found |= divided(recipe, processes, folder)
    recipe = replace(recipe, teacher=large)
    for name, sharded in (("parallel", False), ("sharded", True)):
        found[name] = measure(recipe, processes, sharded)
    (folder / f"found-{processes.rank}.json").write_text(json.dumps(found))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
