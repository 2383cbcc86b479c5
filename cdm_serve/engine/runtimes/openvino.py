"""OpenVINO on the CPU, which reads the ONNX file itself."""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.runtime import Array, Arrays

PRECISIONS = ("auto", "f32", "bf16")
# Parts of the CPU that graphs may run on side by side, with an equal number of cores each.
LANES = 2
# A graph with fewer bytes of weights is compiled anew for each shape: 10 to 25 % faster, and the
# bits are the same at every batch size. But each copy takes some 1.5 times these bytes.
SMALL = 128 * 2**20
# Copies of one graph that are kept, those used last; four to six serve one picture size.
COPIES = 32
# Batch sizes to compile for; what lies between runs in the next one.
BATCHES = (1, 2, 4, 6, 8, 12, 16)


class OpenVino:
    """The CPU: all cores for each graph, or its lanes side by side for small ones."""

    def __init__(self, precision: str) -> None:
        """``auto`` leaves the arithmetic to OpenVINO and the CPU it finds.

        Raises:
            ValueError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        # Not pinned: the cores are shared with the gateway.
        self._options: dict[str, Any] = {"ENABLE_CPU_PINNING": False}
        if precision != "auto":
            self._options["INFERENCE_PRECISION_HINT"] = precision
        self._core = openvino.Core()

    @property
    def arrays(self) -> ModuleType:
        """Numpy."""
        return np

    @property
    def overlaps(self) -> bool:
        """Graphs with all cores at once would only be in each other's way."""
        return False

    @property
    def batches(self) -> str:
        """Rows are the same in every batch."""
        return "exact"

    def load(self, path: Path) -> "WholeGraph | StaticGraph":
        """Read an ONNX file; a small one is compiled when it meets a shape, others here."""
        model = self._core.read_model(path)
        weights = sum(
            node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant"
        )
        wide = self._options | {"PERFORMANCE_HINT": "LATENCY"}
        if weights > SMALL:
            return WholeGraph(self._core.compile_model(model, "CPU", wide))
        cores = len(os.sched_getaffinity(0))
        narrow = self._options | {
            "NUM_STREAMS": LANES,
            "INFERENCE_NUM_THREADS": cores // LANES * LANES,
        }
        return StaticGraph(Copies(self._core, model, wide, narrow if cores >= LANES else None))

    def to_host(self, array: Array) -> NDArray[Any]:
        """It is there."""
        host: NDArray[Any] = array
        return host


class WholeGraph:
    """A graph compiled once, for shapes of any size, and one request to run it by."""

    def __init__(self, compiled: Any) -> None:
        # A port has several names when the graph passes it through a node without effect.
        self._outputs = [(name, port) for port in compiled.outputs for name in port.get_names()]
        self._inputs = _dtypes(compiled)
        self._request = compiled.create_infer_request()

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._inputs

    @property
    def lanes(self) -> Sequence["WholeGraph"]:
        """None: a second copy of large weights for them would not pay."""
        return ()

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, as copies."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        return {name: results[port] for name, port in self._outputs}


class Request:
    """An execution's place: its inputs and outputs always lie in the same memory."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = {
            name: self._request.get_tensor(port).data
            for port in compiled.inputs
            for name in port.get_names()
        }
        self._outputs = {
            name: self._request.get_tensor(port).data
            for port in compiled.outputs
            for name in port.get_names()
        }

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs as copies; where there are fewer rows than compiled for, the last fills up."""
        rows = 0
        for name, array in inputs.items():
            rows = len(array)
            self._inputs[name][:rows] = array
            self._inputs[name][rows:] = array[-1]
        self._request.start_async()
        self._request.wait()
        return {name: array[:rows].copy() for name, array in self._outputs.items()}


class Copies:
    """A graph compiled for one set of shapes after the other, as they are met; for all threads."""

    def __init__(
        self, core: Any, model: Any, wide: dict[str, Any], narrow: dict[str, Any] | None
    ) -> None:
        self.inputs = _dtypes(model)
        self.lanes = 0 if narrow is None else LANES
        self._core = core
        self._model = model
        self._wide = wide
        self._narrow = narrow
        self._requests: OrderedDict[tuple[Any, ...], list[Request]] = OrderedDict()
        self._lock = threading.Lock()

    def request(self, inputs: Arrays, lane: int | None) -> Request:
        """The place for inputs of these shapes on a lane, None for the whole CPU."""
        shapes = {name: (_batch(len(array)), *array.shape[1:]) for name, array in inputs.items()}
        key = lane is None, *sorted(shapes.items())
        with self._lock:
            if key not in self._requests:
                self._requests[key] = self._compile(shapes, wide=lane is None)
            while len(self._requests) > COPIES:
                self._requests.popitem(last=False)
            self._requests.move_to_end(key)
            return self._requests[key][lane or 0]

    def _compile(self, shapes: dict[str, tuple[int, ...]], *, wide: bool) -> list[Request]:
        model = self._model.clone()
        model.reshape({name: list(shape) for name, shape in shapes.items()})
        compiled = self._core.compile_model(model, "CPU", self._wide if wide else self._narrow)
        return [Request(compiled) for _ in range(1 if wide else self.lanes)]


class StaticGraph:
    """A graph in copies, on one lane or on all cores."""

    def __init__(self, copies: Copies, lane: int | None = None) -> None:
        self._copies = copies
        self._lane = lane

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._copies.inputs

    @property
    def lanes(self) -> Sequence["StaticGraph"]:
        """The same graph for each lane; none on a single core."""
        return [StaticGraph(self._copies, lane) for lane in range(self._copies.lanes)]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, as copies."""
        return self._copies.request(inputs, self._lane).run(inputs)


def _batch(rows: int) -> int:
    """The batch size that so many rows run in."""
    return next((batch for batch in BATCHES if batch >= rows), -(-rows // 8) * 8)


def _dtypes(graph: Any) -> dict[str, np.dtype[Any]]:
    return {
        name: np.dtype(port.get_element_type().to_dtype())
        for port in graph.inputs
        for name in port.get_names()
    }
