"""One resumable training loop for the VAE and the teacher.

Every batch, noise draw and learning rate follows from the seed and the step number alone, so a
checkpoint needs no random states: step 1,000 is the same after a resume as without one.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from distill.errors import DistillError

Losses = Mapping[str, Tensor]
LOG_EVERY = 25


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train; ``ema`` is the decay of the averaged weights (0: none)."""

    steps: int
    batch: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 200
    constant: float = 0.6
    ema: float = 0.999
    save_every: int = 200

    def rate_at(self, step: int) -> float:
        """Return the learning rate: linear warm-up, constant, then a cosine tail to zero."""
        rising = min((step + 1) / self.warmup, 1.0)
        tail = (step / self.steps - self.constant) / (1 - self.constant)
        falling = 0.5 * (1 + math.cos(math.pi * min(max(tail, 0.0), 1.0)))
        return self.learning_rate * rising * falling


def train(
    plan: Plan,
    module: nn.Module,
    loss_at: Callable[[int], Losses],
    run: Path,
    preview: Callable[[nn.Module, Path], None],
) -> nn.Module:
    """Minimise ``loss_at(step)["loss"]`` over ``module`` and return the averaged module.

    Continues from ``run/checkpoint.pt`` if that exists. Writes ``run/log.jsonl`` and calls
    ``preview(averaged, path)`` at every checkpoint.

    Raises:
        DistillError: the loss is not finite; the last checkpoint is left in place.
    """
    run.mkdir(parents=True, exist_ok=True)
    averaged = copy.deepcopy(module).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        module.parameters(), plan.learning_rate, plan.betas, weight_decay=plan.weight_decay
    )
    checkpoint = run / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        averaged.load_state_dict(saved["averaged"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    started = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} samples/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, (run / "log.jsonl").open("a") as log:
        task = progress.add_task(run.name, total=plan.steps, completed=first, rate=0.0)
        for step in range(first, plan.steps):
            rate = plan.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            _average(averaged, module, min(plan.ema, (1 + step) / (10 + step)))
            if (step + 1) % LOG_EVERY == 0:
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
            if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                state = {
                    "module": module.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
                temporary = checkpoint.with_suffix(".tmp")
                torch.save(state, temporary)
                temporary.replace(checkpoint)
                preview(averaged, run / "preview.png")
    return averaged


@torch.no_grad()
def _average(averaged: nn.Module, module: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(
        list(averaged.parameters()), [p.detach() for p in module.parameters()], 1 - decay
    )
