"""What an execution takes: measured at start, corrected by what executions take under load."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# Of two batch sizes that make about as much in a second, the smaller one: it answers sooner.
WORTH = 0.95
# Nobody sees the difference between executions that are shorter than this.
INSTANT = 0.01
# How much of an estimate each further execution replaces.
LEARNING = 0.05

Seconds = dict[int, float]


def best_batch(seconds: Seconds, count: int) -> int:
    """The measured batch size, at most ``count``, that makes the most samples in a second.

    Of sizes within 5 % of the best it is the smallest; below 10 ms an execution costs nothing.
    """
    rates = {
        batch: batch / max(spent, INSTANT) for batch, spent in seconds.items() if batch <= count
    }
    enough = WORTH * max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= enough)


@dataclass(frozen=True)
class Curve:
    """Seconds of one execution by its batch size.

    ``wide`` with the whole machine; ``narrow`` on one of ``lanes`` parts of it, while the others
    are as busy. Without lanes ``narrow`` is empty.
    """

    wide: Seconds
    narrow: Seconds = field(default_factory=dict)
    lanes: int = 1

    @property
    def together(self) -> Seconds:
        """By samples in execution at once, on all lanes; what the machine makes, for admission."""
        return {1: self.wide[1]} | (
            {self.lanes * batch: spent for batch, spent in self.narrow.items()} or self.wide
        )

    def scaled(self, factor: float) -> "Curve":
        """Each execution so many times as long."""
        wide = {batch: factor * spent for batch, spent in self.wide.items()}
        narrow = {batch: factor * spent for batch, spent in self.narrow.items()}
        return Curve(wide, narrow, self.lanes)


class Costs:
    """Curves of the text encoder, and by picture size of a step, of a decoding and of an encoding.

    For use by many threads. A size that was not measured gets the curve of the nearest one that
    was, in proportion to their pixels. What executions really take, beside whatever else the
    machine does, moves a factor for each stage and size; batches are chosen by the curves alone,
    and what one picture takes that has the machine for itself stays as it was measured.
    """

    def __init__(
        self,
        text: Curve,
        step: dict[str, Curve],
        decode: dict[str, Curve],
        picture: Mapping[str, Curve] = MappingProxyType({}),
    ) -> None:
        """``picture`` is empty where none can come in."""
        self._curves = {
            "text": {"": text},
            "step": dict(step),
            "decode": dict(decode),
            "picture": dict(picture),
        }
        self._measured = tuple(step)
        self._factors: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def curve(self, stage: str, size: str) -> Curve:
        """Of a stage of ``policy``; as measured or, for other sizes, estimated."""
        curves = self._curves[stage]
        if size not in curves:
            nearest = min(self._measured, key=lambda each: abs(_pixels(each) - _pixels(size)))
            curves[size] = curves[nearest].scaled(_pixels(size) / _pixels(nearest))
        return curves[size]

    def observe(self, stage: str, size: str, batch: int, seconds: float, *, narrow: bool) -> None:
        """An execution took so long."""
        curve = self.curve(stage, size)
        expected = (curve.narrow if narrow else curve.wide).get(batch)
        if expected:
            with self._lock:
                factor = self._factors.get((stage, size), 1.0)
                factor += LEARNING * (seconds / expected - factor)
                self._factors[stage, size] = factor

    def together(self, stage: str, size: str) -> Seconds:
        """``Curve.together``, corrected."""
        measured = self.curve(stage, size)
        corrected = measured.scaled(self._factors.get((stage, size), 1.0)).together
        return corrected | ({1: measured.wide[1]} if size in self._measured else {})

    def alone(self, size: str, steps: int) -> float:
        """Seconds of a job's steps when nobody else is there."""
        return steps * self.curve("step", size).wide[1]

    def to_json(self) -> dict[str, Any]:
        """The ``costs`` of a description."""
        sizes: dict[str, dict[str, Any]] = {}
        for size in list(self._curves["step"]):
            step, decode = self.together("step", size), self.together("decode", size)
            sizes[size] = {
                "step": {str(batch): spent for batch, spent in step.items()},
                "decode": {str(batch): spent for batch, spent in decode.items()},
                "batch": best_batch(step, max(step)),
            }
            if self._curves["picture"]:
                sizes[size]["picture"] = {"1": self.together("picture", size)[1]}
        return {"text": self.curve("text", "").wide[1], **sizes}


def _pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height
