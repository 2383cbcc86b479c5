"""What an execution takes: measured at start, corrected by what executions take under load."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# Of two batch sizes that make about as much in a second, the smaller one: it answers sooner.
WORTH = 0.95
# Nobody sees the difference between executions that are shorter than this.
INSTANT = 0.01
# How much of an estimate each further execution replaces, after the first thousand,
# which weigh alike.
LEARNING = 0.001
# One execution counts as so many times as long as it should have taken, at most.
OUTLIER = 3.0

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
    """Curves of the text encoder, and by picture size of a step, of decodings and of an encoding.

    For use by many threads. A size that was not measured gets the curve of the nearest one that
    was, in proportion to their pixels. What executions really take, beside whatever else the
    machine does, moves a factor for each stage and size; batches are chosen by the curves alone,
    and what a picture takes ``alone``, with the machine for itself, stays as it was measured.
    """

    def __init__(
        self,
        text: Curve,
        step: dict[str, Curve],
        decode: dict[str, Curve],
        picture: Mapping[str, Curve] = MappingProxyType({}),
        tiny: Mapping[str, Curve] = MappingProxyType({}),
    ) -> None:
        """``picture`` is empty where none can come in, ``tiny`` without such a decoder."""
        self._curves = {
            "text": {"": text},
            "step": dict(step),
            "decode": dict(decode),
            "picture": dict(picture),
            "tiny_decode": dict(tiny),
        }
        self._measured = tuple(step)
        self._factors: dict[tuple[str, str], float] = {}
        self._seen: Counter[tuple[str, str]] = Counter()
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
                self._seen[stage, size] += 1
                factor = self._factor(stage, size)
                ratio = min(seconds / expected, OUTLIER * factor)
                weight = max(LEARNING, 1 / (1 + self._seen[stage, size]))
                self._factors[stage, size] = factor + weight * (ratio - factor)

    def expected(self, stage: str, size: str, batch: int) -> float:
        """Seconds of an execution, at most: no batch takes longer than its samples one by one."""
        curve = self.curve(stage, size)
        return batch * self._factor(stage, size) * max(curve.wide[1], curve.narrow.get(1, 0.0))

    def _factor(self, stage: str, size: str) -> float:
        return self._factors.get((stage, size), 1.0)

    def _told(self, stage: str, size: str) -> dict[str, float]:
        """``Curve.together``, corrected, and what one takes ``alone``; a guess is corrected too."""
        curve, factor = self.curve(stage, size), self._factor(stage, size)
        guessed = stage != "text" and size not in self._measured
        alone = curve.wide[1] * (factor if guessed else 1.0)
        seconds = curve.scaled(factor).together
        return {"alone": alone} | {str(batch): spent for batch, spent in seconds.items()}

    def alone(self, size: str, steps: int) -> float:
        """Seconds of a job's steps when nobody else is there."""
        return steps * self.curve("step", size).wide[1]

    def to_json(self) -> dict[str, Any]:
        """The ``costs`` of a description."""
        sizes: dict[str, dict[str, Any]] = {}
        for size in list(self._curves["step"]):
            step = self.curve("step", size).together
            sizes[size] = {"batch": best_batch(step, max(step))}
            for stage in ("step", "decode", "tiny_decode", "picture"):
                if self._curves[stage]:
                    sizes[size][stage] = self._told(stage, size)
        return {"text": self._told("text", ""), **sizes}


def _pixels(size: str) -> int:
    width, height = map(int, size.split("x"))
    return width * height
