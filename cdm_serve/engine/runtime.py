"""A small wrapper of OpenVINO on the CPU: load an ONNX file, run it."""

from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

PRECISIONS = ("auto", "f32", "bf16")


class Session:
    """One compiled graph. Not for use by two threads at once."""

    def __init__(self, path: Path, precision: str = "auto") -> None:
        """Compile ``path``; ``auto`` leaves the arithmetic to OpenVINO and the CPU it finds.

        Raises:
            ValueError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision != "auto":
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = openvino.Core().compile_model(path, "CPU", options)
        # A port has several names when the graph passes it through a node without effect.
        self._outputs = [(name, port) for port in compiled.outputs for name in port.get_names()]
        self._request = compiled.create_infer_request()

    def run(self, inputs: Arrays) -> Arrays:
        """The outputs by name, as copies."""
        results = self._request.infer(inputs, share_inputs=True)
        return {name: results[port] for name, port in self._outputs}
