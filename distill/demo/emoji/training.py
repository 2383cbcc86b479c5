"""One resumable training for the VAE, the teacher and the judge, on one process or several.

Every batch, noise draw and learning rate follows from the step number and the process's rank
alone, so a checkpoint needs no random states: step 1,000 is the same after a resume as without.
Between two lines of the log nothing is read back from the device, so a GPU never waits.

On a CPU one process of one thread for each core is faster than one process of several threads:
``torchrun --nproc-per-node 2 -m distill.demo.emoji ...``
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from distill import checkpoint
from distill.errors import DistillError
from distill.log import RunLog, TrainingProgress
from distill.networks import Average, Optimiser, ramped_decay, weights_of
from distill.parallel import Processes
from distill.recipe import OptimiserRecipe

Losses = Mapping[str, Tensor]
LOG_EVERY = 25
_SAVE_SECONDS = 150
_ADAM = OptimiserRecipe(beta2=0.98, weight_decay=0.01, warmup=200, decay=0.4)


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    ``ema`` is the greatest decay of the averaged weights. ``minutes`` limits one call, not the
    run: it stops there, with a checkpoint from which the next one goes on.
    """

    steps: int
    batch: int
    rate: float
    optimiser: OptimiserRecipe = _ADAM
    ema: float = 0.999
    minutes: float = math.inf


class Training:
    """A network, its optimiser and its average: all that the next step depends on."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.processes, self.updates, self.network = Processes(), 0, network
        self.average = Average(network)
        self.optimiser = Optimiser(network, plan.optimiser, plan.rate, plan.steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What a continuation must have in common with this run."""
        parameters = sum(weight.numel() for weight in weights_of(self.network).values())
        return {"network": type(self.network).__name__, "parameters": parameters}

    def state_dict(self) -> dict[str, Any]:
        """Its own tensors, and the step."""
        return {
            "updates": self.updates,
            "network": weights_of(self.network),
            "average": self.average.values,
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``, whose weights were loaded in place."""
        self.updates = state["updates"]
        self.optimiser.load_state_dict(state["optimiser"])


def train(
    plan: Plan,
    network: nn.Module,
    loss_at: Callable[[int, int], Losses],
    run: Path,
    preview: Callable[[], Tensor],
) -> None:
    """Minimise ``loss_at(draw, count)["loss"]`` over ``network``; leave its average in it.

    ``draw`` numbers the batches over all steps and processes, ``count`` is this process's share of
    the batch. Continues from the newest checkpoint in ``run``. Writes the log there, and every few
    minutes a checkpoint and the pictures of ``preview``, which sees the average.

    Raises:
        DistillError: the loss is not finite; the last checkpoint is left in place.
    """
    training = Training(network, plan)
    processes = training.processes
    there = checkpoint.found(run)
    if there:
        checkpoint.load(there[-1], training)
    log = RunLog(run, training.updates, processes.main)
    console = Console(quiet=not processes.main)
    first, started = training.updates, time.perf_counter()
    saved_at = started
    over = False
    with TrainingProgress(console, plan.steps, first) as progress:
        while training.updates < plan.steps and not over:
            step = training.updates
            losses = loss_at(step * processes.count + processes.rank, plan.batch // processes.count)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            processes.average_gradients(network)
            norm = training.optimiser.step(step)
            training.average.update(ramped_decay(step, plan.ema))
            training.updates = step = step + 1
            if step % LOG_EVERY == 0:
                seconds = time.perf_counter() - started
                record = {name: round(value.item(), 5) for name, value in losses.items()}
                if not math.isfinite(record["loss"]):
                    raise DistillError(
                        f"the loss is {record['loss']} at step {step}; "
                        f"{run} holds the last good checkpoint, lower the learning rate"
                    )
                record["gradient"] = norm.item()
                record["samples_per_second"] = round((step - first) * plan.batch / seconds, 1)
                log.append({"update": step, **record})
                progress.report({"update": step, **record})
                over = processes.any(seconds > 60 * plan.minutes)
            due = processes.main and time.perf_counter() - saved_at > _SAVE_SECONDS
            if over or step == plan.steps or (step % LOG_EVERY == 0 and processes.any(due)):
                checkpoint.save(run, training, keep=1)
                if processes.main:
                    with training.average.applied():
                        log.pictures("preview", preview(), step)
                saved_at = time.perf_counter()
    if over:
        console.print(f"{training.updates} of {plan.steps} steps; the same command goes on")
    training.average.swap()
    network.requires_grad_(False).eval()
