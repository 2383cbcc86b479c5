"""What is asked of an engine, and what it answers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Job:
    """One picture to make.

    ``size`` is ``WIDTHxHEIGHT``; ``partials`` is how many previews are wanted on the way, of which
    there are at most one less than steps to make; no step is begun after ``deadline`` (unix
    seconds); ``decoder`` makes the pixels, ``full`` or ``tiny``, but previews are the tiny one's
    wherever there is one; ``tensors`` are arrays by name, of any shape and number type. What is
    added here travels to the engine without further ado; an engine that does not know it refuses
    it, unless it is the default.

    An edit has the tensor ``picture``, (H, W, 3) uint8 of ``size``, and begins after the first
    ``start`` of its steps, from the picture with so much noise. With ``mask``, (H, W) bool, only
    what is true in it is painted: all other pixels are the picture's own.
    """

    prompt: str
    seed: int
    steps: int
    size: str
    partials: int = 0
    deadline: float | None = None
    start: int = 0
    decoder: str = "full"
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Partial:
    """The picture as the model foresees it after ``step`` steps; ``index`` counts from 0."""

    image: Pixels
    index: int
    step: int


@dataclass(frozen=True)
class Picture:
    """(H, W, 3) pixels and the report of how they were made.

    The report: ``batches``, the size of every step's batch; ``tokens`` of the prompt; ``arrived``,
    unix seconds; ``spans``, a list of (stage, milliseconds after ``arrived``, milliseconds);
    ``milliseconds``, their sums by stage; the stages are queue, text, picture (encoding the one
    that came in), steps, partials and decode.
    """

    image: Pixels
    report: dict[str, Any]


class EngineError(Exception):
    """A picture that will not be made; the text is for the client.

    ``kind`` is ``invalid`` (the request cannot be served as it is), ``expired`` (its deadline
    passed), ``cancelled``, ``not_finite`` (the model gave NaN for it) or ``failed`` (the model
    broke).
    """

    def __init__(self, message: str, kind: str = "failed") -> None:
        super().__init__(message)
        self.kind = kind
