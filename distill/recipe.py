"""What a training run is: frozen dataclasses, filled from a TOML file.

The defaults are the published SD3-Medium recipe (arXiv 2605.06376). pydantic refuses a wrong type
or value when one is made.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distill.errors import DistillError

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
MAY_CHANGE = ("updates", "output", "optimiser", "log", "evaluation", "runtime")
"""Keys that may differ between a run and its continuation; another would change its meaning."""

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_STRICT)
class ScheduleRecipe:
    """The anchors of the student's rollout; ``low`` and ``high`` are before the shift.

    ``index``: where a rollout stops. ``shared`` is one anchor for the whole batch: shapes do not
    change within an iteration, as sharded networks need it.
    """

    kind: Literal["dynamic", "fixed"] = "dynamic"
    n_max: Count = 28
    anchors: Literal["iid", "stratified"] = "iid"
    low: Fraction = 0.25
    high: Fraction = 0.95
    index: Literal["per_sample", "shared"] = "per_sample"

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise DistillError(
                f"recipe key schedule.low = {self.low} must not be above "
                f"schedule.high = {self.high}"
            )


@dataclass(frozen=True, config=_STRICT)
class LossRecipe:
    """Weights (0 drops a loss and its forwards), CA's alpha, the normaliser's floor."""

    ca: Amount = 1.0
    dm: Amount = 1.0
    cdm: Amount = 1.0
    alpha: Amount = 7.0
    floor: Positive = 0.1

    def __post_init__(self) -> None:
        if not (self.ca or self.dm or self.cdm):
            raise DistillError("recipe keys loss.ca, loss.dm and loss.cdm are all 0: nothing to do")

    @property
    def on_trajectory(self) -> bool:
        """Whether a loss takes the student where its rollout stopped."""
        return bool(self.ca or self.dm)


@dataclass(frozen=True, config=_STRICT)
class CriticRecipe:
    """The fake teacher; ``anchor``: it is told the sigma that a picture was predicted from."""

    anchor: bool = True


@dataclass(frozen=True, config=_STRICT)
class OptimiserRecipe:
    """AdamW; learning rates per network, after a linear warm-up.

    ``decay``: the last part of the run, over which the rates fall along half a cosine.
    """

    student_rate: Amount = 1e-5
    fake_rate: Amount = 5e-6
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    weight_decay: Amount = 1e-4
    warmup: CountOrNone = 100
    decay: Fraction = 0.0
    grad_clip: Positive = 1.0


@dataclass(frozen=True, config=_STRICT)
class LogRecipe:
    """How often, in student updates; 0 is never. ``keep``: checkpoints kept, the newest."""

    log_every: Count = 10
    preview_every: CountOrNone = 100
    preview_pictures: Count = 16
    checkpoint_every: CountOrNone = 100
    keep: Count = 2


@dataclass(frozen=True, config=_STRICT)
class EvaluationRecipe:
    """How the averaged student is compared with the guided teacher; ``every`` 0 is never.

    Args:
        every: student updates between two evaluations.
        pictures: prompts and seeds compared, the same each time.
        teacher_steps: of the teacher's own sampling.
        guidance: of the teacher's own sampling.
    """

    every: CountOrNone = 100
    pictures: Count = 16
    teacher_steps: Count = 28
    guidance: Amount = 4.5


@dataclass(frozen=True, config=_STRICT)
class LoraRecipe:
    """Low-rank adapters on student and fake teacher; ``rank`` 0 trains all weights instead."""

    rank: CountOrNone = 0
    alpha: Amount = 64.0


@dataclass(frozen=True, config=_STRICT)
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
    threads: CountOrNone = 0
    accumulate: Count = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    prompts_in_memory: Count = 4096


@dataclass(frozen=True, config=_STRICT)
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
    height: Count
    width: Count
    max_sequence_length: CountOrNone | None = None
    steps: Count = 4
    updates: CountOrNone = 2000
    batch: Count = 16
    fake_updates: Count = 2
    fake_pull: Fraction = 0.001
    ema: Fraction = 0.999
    seed: CountOrNone = 0
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    critic: CriticRecipe = field(default_factory=CriticRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    runtime: RuntimeRecipe = field(default_factory=RuntimeRecipe)


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a TOML file, after ``key=value`` overrides such as ``loss.alpha=3``.

    Raises:
        DistillError: no such file, no TOML, an unknown or missing key, a wrong type or value.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistillError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DistillError(f"recipe {path} is no valid TOML: {error}") from error
    for override in overrides or []:
        _override(table, override)
    try:  # as JSON, from which strict dataclasses may be read
        return TypeAdapter(Recipe).validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        raise DistillError(_line(error)) from error


def _line(error: ValidationError) -> str:
    """The first mistake."""
    mistake = error.errors()[0]
    path = [str(part) for part in mistake["loc"]]
    tables, key = path[:-1], ".".join(path)
    if mistake["type"] == "missing":
        return f"recipe key {key} is missing"
    if mistake["type"] == "unexpected_keyword_argument":
        kind: Any = Recipe
        for table in tables:
            kind = get_type_hints(kind)[table]
        names = [".".join([*tables, known.name]) for known in fields(kind)]
        return f"unknown recipe key {key}; known: {', '.join(names)}"
    expected = mistake["msg"].replace("Input should be", "expected")
    return f"recipe key {key} = {mistake['input']!r}: {expected}"


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise DistillError(f"--set {override!r} must be key=value, such as loss.alpha=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # so that a plain string needs no quotes
    *path, last = key.strip().split(".")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise DistillError(f"--set {override!r}: {part} is no table")
    table[last] = value
