"""OpenVINO on the CPU, which reads the ONNX file itself."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.runtime import Array, Arrays

PRECISIONS = ("auto", "f32", "bf16")


class OpenVino:
    """The CPU, all cores for each graph."""

    def __init__(self, precision: str) -> None:
        """``auto`` leaves the arithmetic to OpenVINO and the CPU it finds.

        Raises:
            ValueError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        # Not pinned: the cores are shared with the gateway and with the other stages' graphs.
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        if precision != "auto":
            self._options["INFERENCE_PRECISION_HINT"] = precision
        self._core = openvino.Core()

    @property
    def arrays(self) -> ModuleType:
        """Numpy."""
        return np

    def load(self, path: Path) -> "OpenVinoGraph":
        """Compile an ONNX file."""
        return OpenVinoGraph(self._core.compile_model(path, "CPU", self._options))

    def to_host(self, array: Array) -> NDArray[Any]:
        """It is there."""
        host: NDArray[Any] = array
        return host


class OpenVinoGraph:
    """A compiled graph and one request to run it by."""

    def __init__(self, compiled: Any) -> None:
        # A port has several names when the graph passes it through a node without effect.
        self._outputs = [(name, port) for port in compiled.outputs for name in port.get_names()]
        self._inputs = {
            name: np.dtype(port.get_element_type().to_dtype())
            for port in compiled.inputs
            for name in port.get_names()
        }
        self._request = compiled.create_infer_request()

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._inputs

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, as copies."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        return {name: results[port] for name, port in self._outputs}
