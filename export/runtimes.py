"""The runtimes that an export is compared in, each behind the same two calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

Array = NDArray[Any]


class Session(Protocol):
    """One loaded graph."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs by name."""


@dataclass(frozen=True)
class Runtime:
    """A way of running a graph.

    Attributes:
        name: the package and, where it is not the graph's own, the arithmetic: ``openvino-bf16``.
        arithmetic: a type it computes in that may be coarser than the graph's own.
        serves: whether serving may use it, which asks for the same bits in every batch.
        required: whether the export fails with it; what is not is only left out of serving.
    """

    name: str
    open: Callable[[Path], Session]
    arithmetic: str | None = None
    serves: bool = False
    required: bool = True


def runtimes(precision: str) -> list[Runtime]:
    """Those of this machine that can run graphs of a precision.

    ONNX Runtime has no bfloat16 convolution on the CPU. For float16 it has few kernels there: the
    others compute in float32 between float16 values. OpenVINO converts the weights and computes in
    float32 or, on a processor with such instructions, in bfloat16, whatever the graph's types.
    """
    found = []
    if precision != "bf16":
        found.append(Runtime("onnxruntime", _OnnxRuntime))
    found.append(Runtime("openvino-f32", _openvino("f32"), serves=True))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found.append(Runtime("openvino-bf16", _openvino("bf16"), "bf16", True, required=False))
    return found


class _OnnxRuntime:
    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


class _OpenVino:
    def __init__(self, path: Path, arithmetic: str) -> None:
        options = {"INFERENCE_PRECISION_HINT": arithmetic, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", options)
        # A port has several names when the graph passes it through a node without effect.
        self._outputs = [(name, port) for port in compiled.outputs for name in port.get_names()]
        self._request = compiled.create_infer_request()

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        results = self._request.infer(inputs)
        return {name: np.array(results[port]) for name, port in self._outputs}


def _openvino(arithmetic: str) -> Callable[[Path], Session]:
    return lambda path: _OpenVino(path, arithmetic)
