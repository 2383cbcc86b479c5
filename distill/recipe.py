"""What a training run is: frozen dataclasses, filled from a TOML file.

The defaults are the published SD3-Medium recipe (arXiv 2605.06376).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from distill.errors import DistillError


@dataclass(frozen=True)
class ScheduleRecipe:
    """The anchors of the student's rollout; ``low`` and ``high`` are before the shift.

    ``index``: where a rollout stops. ``shared`` is one anchor for the whole batch: shapes do not
    change within an iteration, as sharded networks need it.
    """

    kind: Literal["dynamic", "fixed"] = "dynamic"
    n_max: int = 28
    anchors: Literal["iid", "stratified"] = "iid"
    low: float = 0.25
    high: float = 0.95
    index: Literal["per_sample", "shared"] = "per_sample"


@dataclass(frozen=True)
class LossRecipe:
    """Weights (0 drops a loss and its forwards), CA's alpha, the normaliser's floor.

    Args:
        sigmas: how the levels that the teachers see are drawn.
        off_trajectory: CDM's input: ``euler`` goes on along the student's velocity, ``noise``
            adds fresh noise to its x0_hat, ``none`` stays at the anchor.
    """

    ca: float = 1.0
    dm: float = 1.0
    cdm: float = 1.0
    alpha: float = 7.0
    floor: float = 0.1
    sigmas: Literal["uniform", "logit_normal"] = "uniform"
    off_trajectory: Literal["euler", "noise", "none"] = "euler"

    @property
    def on_trajectory(self) -> bool:
        """Whether a loss takes the student where its rollout stopped."""
        return bool(self.ca or self.dm) or self.off_trajectory == "none"


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW at a constant rate after a linear warm-up; learning rates per network."""

    student_rate: float = 1e-5
    fake_rate: float = 5e-6
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-4
    warmup: int = 100
    grad_clip: float = 1.0


@dataclass(frozen=True)
class LogRecipe:
    """How often, in student updates; 0 is never. ``keep``: checkpoints kept, the newest."""

    log_every: int = 10
    preview_every: int = 100
    preview_pictures: int = 16
    checkpoint_every: int = 100
    keep: int = 2


@dataclass(frozen=True)
class EvaluationRecipe:
    """How the averaged student is compared with the guided teacher; ``every`` 0 is never.

    Args:
        every: student updates between two evaluations.
        pictures: prompts and seeds compared, the same each time.
        teacher_steps: of the teacher's own sampling.
        guidance: of the teacher's own sampling.
    """

    every: int = 100
    pictures: int = 16
    teacher_steps: int = 28
    guidance: float = 4.5


@dataclass(frozen=True)
class LoraRecipe:
    """Low-rank adapters on student and fake teacher; ``rank`` 0 trains all weights instead."""

    rank: int = 0
    alpha: float = 64.0


@dataclass(frozen=True)
class RuntimeRecipe:
    """Where and how it runs; nothing here changes what is learnt, but for rounding.

    Args:
        threads: of the CPU; 0 leaves torch's own choice.
        accumulate: parts into which a process cuts its share of the batch.
        gradient_checkpointing: recompute activations in the backward pass.
        compile: ``torch.compile`` for the transformer's blocks.
        prompts_in_memory: embeddings kept at a time; more prompts are encoded as they are needed.
    """

    device: str = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    accumulate: int = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    prompts_in_memory: int = 4096


@dataclass(frozen=True)
class Recipe:
    """A whole distillation.

    Args:
        teacher: diffusers folder or hub name.
        output: the student's folder; its last part is the student's name.
        prompts: a text file, one prompt a line; JSONL; or the name of a Hugging Face dataset.
        max_sequence_length: text tokens, as the adapter takes them; None is its own choice.
        updates: student updates.
        fake_updates: fake-teacher updates for each student update.
        fake_pull: after each of its updates the fake teacher moves so far towards the student.
        batch: samples an update, over all processes.
        steps: the sampling steps that the student is previewed and described with.
        ema: greatest decay of the student's moving average.
    """

    teacher: str
    output: str
    prompts: str
    height: int
    width: int
    max_sequence_length: int | None = None
    steps: int = 4
    updates: int = 2000
    batch: int = 16
    fake_updates: int = 2
    fake_pull: float = 0.001
    ema: float = 0.999
    seed: int = 0
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    runtime: RuntimeRecipe = field(default_factory=RuntimeRecipe)

    def __post_init__(self) -> None:
        """Refuse values that no run can mean.

        Raises:
            DistillError: names the key, the value and what is allowed.
        """
        schedule, loss, optimiser, log = self.schedule, self.loss, self.optimiser, self.log
        at_least_1: dict[str, float] = {
            "height": self.height,
            "width": self.width,
            "steps": self.steps,
            "batch": self.batch,
            "fake_updates": self.fake_updates,
            "schedule.n_max": schedule.n_max,
            "log.log_every": log.log_every,
            "log.preview_pictures": log.preview_pictures,
            "log.keep": log.keep,
            "evaluation.pictures": self.evaluation.pictures,
            "evaluation.teacher_steps": self.evaluation.teacher_steps,
            "runtime.accumulate": self.runtime.accumulate,
            "runtime.prompts_in_memory": self.runtime.prompts_in_memory,
        }
        at_least_0: dict[str, float] = {
            "max_sequence_length": self.max_sequence_length or 0,
            "updates": self.updates,
            "seed": self.seed,
            "loss.ca": loss.ca,
            "loss.dm": loss.dm,
            "loss.cdm": loss.cdm,
            "loss.alpha": loss.alpha,
            "optimiser.student_rate": optimiser.student_rate,
            "optimiser.fake_rate": optimiser.fake_rate,
            "optimiser.weight_decay": optimiser.weight_decay,
            "optimiser.warmup": optimiser.warmup,
            "log.preview_every": log.preview_every,
            "log.checkpoint_every": log.checkpoint_every,
            "evaluation.every": self.evaluation.every,
            "evaluation.guidance": self.evaluation.guidance,
            "lora.rank": self.lora.rank,
            "lora.alpha": self.lora.alpha,
            "runtime.threads": self.runtime.threads,
        }
        fractions: dict[str, float] = {
            "fake_pull": self.fake_pull,
            "ema": self.ema,
            "schedule.low": schedule.low,
            "schedule.high": schedule.high,
            "optimiser.beta1": optimiser.beta1,
            "optimiser.beta2": optimiser.beta2,
        }
        positive = {"loss.floor": loss.floor, "optimiser.grad_clip": optimiser.grad_clip}
        _refuse(at_least_1, 1, math.inf, "at least 1")
        _refuse(at_least_0, 0, math.inf, "0 or more")
        _refuse(fractions, 0, 1, "from 0 to 1")
        _refuse(positive, math.ulp(0), math.inf, "more than 0")
        if schedule.low > schedule.high:
            raise DistillError(
                f"recipe key schedule.low = {schedule.low} must not be above "
                f"schedule.high = {schedule.high}"
            )
        if not (loss.ca or loss.dm or loss.cdm):
            raise DistillError("recipe keys loss.ca, loss.dm and loss.cdm are all 0: nothing to do")


def _refuse(values: dict[str, float], least: float, greatest: float, allowed: str) -> None:
    for key, value in values.items():
        if not (math.isfinite(value) and least <= value <= greatest):
            raise DistillError(f"recipe key {key} = {value} must be {allowed}")
