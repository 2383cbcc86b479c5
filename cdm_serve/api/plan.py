"""What exactly is made of a request, and what comes of it."""

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from cdm_serve.api.schema import OutputFormat
from cdm_serve.engine.card import ModelCard

STEPS_QUALITY = {1: "low", 2: "medium", 4: "high", 8: "xhigh", 16: "max"}


@dataclass(frozen=True)
class Plan:
    """``seeds`` has one entry a picture.

    ``raw``: answer with the picture itself, not JSON; ``link``: with its address; ``stream``: with
    events, among them up to ``partials`` previews a picture. ``decoder`` makes the last pixels, one
    of the model's. ``deadline`` is in unix seconds.
    An edit makes all but the first ``start`` of its steps, as its ``strength`` asks, from what is
    in ``tensors`` for the engine. ``warnings`` tell the client what was asked for and is not done,
    or done otherwise.
    """

    model: ModelCard
    prompt: str
    seeds: tuple[int, ...]
    steps: int
    size: str
    decoder: str
    output_format: OutputFormat
    compression: int
    raw: bool
    link: bool
    stream: bool
    partials: int
    deadline: float | None
    warnings: tuple[str, ...] = ()
    start: int = 0
    strength: float | None = None
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def edit(self) -> bool:
        """Whether it is made of a picture."""
        return self.strength is not None

    @property
    def positions(self) -> int:
        """Latent positions of one picture."""
        width, height = (int(side) // self.model.downscale for side in self.size.split("x"))
        return width * height

    @property
    def quality(self) -> str:
        """OpenAI's word for the number of steps, ``auto`` where it has none."""
        return STEPS_QUALITY.get(self.steps, "auto")


@dataclass(frozen=True)
class Waiting:
    """Nothing came for a while; about ``ahead`` pictures are before the request's."""

    ahead: int


@dataclass(frozen=True)
class Preview:
    """What picture ``number`` of the request will look like, foreseen after ``step`` steps."""

    file: bytes
    number: int
    seed: int
    index: int
    step: int


@dataclass(frozen=True)
class Made:
    """Picture ``number`` of the request: its file, receipt and how many tokens its prompt had."""

    file: bytes
    number: int
    receipt: dict[str, Any]
    tokens: int


Event = Waiting | Preview | Made
