"""One resumable training loop for the VAE and the teacher, on one process or several.

Every batch, noise draw and learning rate follows from the step number and the process's rank
alone, so a checkpoint needs no random states: step 1,000 is the same after a resume as without.
Between two lines of the log nothing is read back from the device, so a GPU never waits.

On a CPU one process of one thread for each core is faster than one process of several threads:
``torchrun --nproc-per-node 2 -m distill.demo.emoji ...``
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from distill.demo.emoji.processes import any_process, join_processes
from distill.errors import DistillError
from distill.files import whole_file

Losses = Mapping[str, Tensor]
LOG_EVERY = 25
_SAVE_SECONDS = 150


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    ``ema`` is the decay of the averaged weights (0: none). ``minutes`` limits one call, not the
    run: it stops there, with a checkpoint from which the next one goes on.
    """

    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 200
    constant: float = 0.6
    ema: float = 0.999
    minutes: float = math.inf

    def rate_at(self, step: int) -> float:
        """Return the learning rate: linear warm-up, constant, then a cosine tail to zero."""
        rising = min((step + 1) / self.warmup, 1.0)
        tail = (step / self.steps - self.constant) / (1 - self.constant)
        falling = 0.5 * (1 + math.cos(math.pi * min(max(tail, 0.0), 1.0)))
        return self.learning_rate * rising * falling


def train(
    plan: Plan,
    module: nn.Module,
    loss_at: Callable[[int, int], Losses],
    run: Path,
    preview: Callable[[nn.Module, Path], None],
) -> nn.Module:
    """Minimise ``loss_at(draw, count)["loss"]`` over ``module``; return the averaged module.

    ``draw`` numbers the batches over all steps and processes, ``count`` is this process's share of
    the batch. Continues from ``run/checkpoint.pt`` if that exists. Writes ``run/log.jsonl``, and
    every few minutes a checkpoint and ``preview(averaged, path)``.

    Raises:
        DistillError: the loss is not finite; the last checkpoint is left in place.
    """
    run.mkdir(parents=True, exist_ok=True)
    rank, processes = join_processes()
    averaged = copy.deepcopy(module).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        module.parameters(),
        plan.learning_rate,
        plan.betas,
        weight_decay=plan.weight_decay,
        fused=True,
    )
    gradients = _one_buffer(module)
    checkpoint = run / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(saved["module"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    started = saved_at = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} samples/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(quiet=rank > 0)
    log_name = "log.jsonl" if rank == 0 else os.devnull
    with Progress(*columns, console=console) as progress, (run / log_name).open("a") as log:
        task = progress.add_task(run.name, total=plan.steps, completed=first, rate=0.0)
        for step in range(first, plan.steps):
            rate = plan.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = loss_at(step * processes + rank, plan.batch // processes)
            gradients.zero_()
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            if processes > 1:
                dist.all_reduce(gradients)
                gradients /= processes
            norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _average(averaged, module, min(plan.ema, (1 + step) / (10 + step)))
            logged = (step + 1) % LOG_EVERY == 0
            if logged:
                speed = (step + 1 - first) * plan.batch / (time.perf_counter() - started)
                values = {name: round(value.item(), 5) for name, value in losses.items()}
                if not math.isfinite(values["loss"]):
                    raise DistillError(
                        f"the loss is {values['loss']} at step {step + 1}; "
                        f"{checkpoint} is the last good state, lower the learning rate"
                    )
                row = {"step": step + 1, **values, "grad_norm": norm.item(), "rate": rate}
                log.write(json.dumps({**row, "samples_per_second": round(speed, 1)}) + "\n")
                log.flush()
                progress.update(task, rate=speed, description=f"loss {values['loss']:.4f}")
            progress.advance(task)
            now = time.perf_counter()
            over = logged and any_process(now - started > 60 * plan.minutes)
            last = over or step + 1 == plan.steps
            if rank == 0 and (last or now - saved_at > _SAVE_SECONDS):
                state = {
                    "module": module.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
                with whole_file(checkpoint) as temporary:
                    torch.save(state, temporary)
                preview(averaged, run / "preview.png")
                saved_at = time.perf_counter()
            if over:
                console.print(f"{step + 1} of {plan.steps} steps; the same command goes on")
                break
    return averaged


def _one_buffer(module: nn.Module) -> Tensor:
    """Make every gradient a view of one tensor, which is shared between processes at once."""
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    gradients = torch.zeros(count, device=parameters[0].device)
    parts = torch.split(gradients, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        # The parameter's own strides: the fused optimizer walks both memories in step.
        parameter.grad = part.as_strided(
            parameter.size(), parameter.stride(), part.storage_offset()
        )
    return gradients


@torch.no_grad()
def _average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(
        list(averaged.parameters()), [p.detach() for p in module.parameters()], 1 - decay
    )
