"""What the engine asks of a runtime: load a graph, run it; it knows nothing else of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cdm_serve.errors import StartError

# numpy's on the CPU, cupy's on a GPU, where arrays stay between the steps.
Array = Any
Arrays = Mapping[str, Array]

RUNTIMES = ("openvino", "onnxruntime", "tensorrt")


class Graph(Protocol):
    """One loaded graph. Not for use by two threads at once."""

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, which the next run leaves alone; ``inputs`` are exactly its own."""


class Runtime(Protocol):
    """Loads graphs; ``arrays`` is the module whose arrays they take and give."""

    @property
    def arrays(self) -> ModuleType:
        """Numpy, or what has its functions."""

    def load(self, path: Path) -> Graph:
        """The graph in a file."""

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""


def fit_precision(fit: Sequence[str], name: str, precision: str) -> str:
    """The precision to open a runtime in, such that it is one of those fit for an export.

    Args:
        fit: runtimes in which the export held everything, as export.json names them.
        name: of the runtime. The export does not try ONNX Runtime on a GPU, so it may be any.
        precision: ``auto`` falls back to f32 where bf16 is not fit.

    Raises:
        StartError: it is not fit.
    """
    if name == "openvino" and precision == "auto" and "openvino-bf16" not in fit:
        precision = "f32"
    wanted = {"openvino": "openvino-f32" if precision == "auto" else f"openvino-{precision}"}
    if name != "onnxruntime" and wanted.get(name, name) not in fit:
        raise StartError(
            f"the export was not found fit for {wanted.get(name, name)}, only for "
            f"{', '.join(fit) or 'none'}: export again here with cdm-export, or choose another "
            "runtime or precision in config.pbtxt"
        )
    return precision


def open_runtime(name: str, precision: str) -> Runtime:
    """The runtime of this name; ``precision`` is what it may compute in, where it has a choice.

    Raises:
        ValueError: an unknown name or precision.
        StartError: a package or a GPU is missing.
    """
    # Each is imported when it is asked for: no machine needs the packages of all.
    if name == "openvino":
        from cdm_serve.engine.openvino_runtime import OpenVino

        return OpenVino(precision)
    if name == "onnxruntime":
        from cdm_serve.engine.onnx_runtime import OnnxRuntime

        return OnnxRuntime("cuda")
    if name == "tensorrt":
        from cdm_serve.engine.tensorrt_runtime import TensorRt

        return TensorRt()
    raise ValueError(f"runtime {name!r} is none of {', '.join(RUNTIMES)}")
