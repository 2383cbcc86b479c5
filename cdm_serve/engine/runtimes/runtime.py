"""What the engine asks of a runtime: load a graph, run it; it knows nothing else of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# numpy's on the CPU, cupy's on a GPU, where arrays stay between the steps.
Array = Any
Arrays = Mapping[str, Array]


class Graph(Protocol):
    """One loaded graph. Not for use by two threads at once."""

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""

    @property
    def lanes(self) -> Sequence["Graph"]:
        """The same graph for each part of the machine, to be run side by side; may be none."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, which the next run leaves alone; ``inputs`` are exactly its own."""


class Runtime(Protocol):
    """Loads graphs; ``arrays`` is the module whose arrays they take and give."""

    @property
    def arrays(self) -> ModuleType:
        """Numpy, or what has its functions."""

    @property
    def overlaps(self) -> bool:
        """Whether different graphs gain from running at once on the whole machine."""

    @property
    def batches(self) -> str:
        """The policy for it, see ``warmup``: exact, or close where rows depend on their company."""

    def load(self, path: Path) -> Graph:
        """The graph in a file."""

    def lost(self) -> bool:
        """Whether the device does nothing more for this process, after an error."""

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
