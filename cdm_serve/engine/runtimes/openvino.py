"""OpenVINO on the CPU, which reads the ONNX file itself."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from ctypes import CDLL, c_size_t, c_void_p
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as opset
from openvino._offline_transformations import compress_model_transformation

from cdm_serve.engine.runtimes.runtime import Array, Arrays

_LIBC = CDLL(None)
_MADV_DONTNEED = 4
PRECISIONS = ("auto", "f32", "bf16")
# Parts of the CPU that graphs may run on side by side, with an equal number of cores each.
LANES = 2
NARROW = (openvino.Type.f16, openvino.Type.bf16)
# A graph with fewer bytes of weights in float32 is compiled anew for each shape: 10 to 25 % faster,
# and the bits are the same at every batch size. But each copy takes some 1.5 times these bytes.
SMALL = 128 * 2**20
# Copies that one lane keeps of a graph, those used last; four to six serve one picture size.
COPIES = 16
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
        constants = (each for each in model.get_ops() if each.get_type_name() == "Constant")
        weights = sum(
            each.get_byte_size() * (2 if each.get_element_type() in NARROW else 1)
            for each in constants
        )
        wide = self._options | {"PERFORMANCE_HINT": "LATENCY"}
        if weights > SMALL:
            _widen(model)
            _never_one_row(model)
            return WholeGraph(self._core.compile_model(model, "CPU", wide), path)
        # One stream for each lane, and not a stream a lane: only so is a graph computed by the
        # thread that asks. Streams' own threads are woken for each run, and Linux often leaves two
        # of them on one core while another has nothing to do: 12 % of two cores' time.
        cores = len(os.sched_getaffinity(0))
        narrow = self._options | {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": cores // LANES}
        lanes = [StaticGraph(self._core, model, narrow) for _ in range(LANES)]
        return StaticGraph(self._core, model, wide, lanes if cores >= LANES else ())

    def lost(self) -> bool:
        """A CPU is not."""
        return False

    def to_host(self, array: Array) -> NDArray[Any]:
        """It is there."""
        host: NDArray[Any] = array
        return host


class WholeGraph:
    """A graph compiled once, for shapes of any size, and one request to run it by."""

    def __init__(self, compiled: Any, path: Path) -> None:
        self._weights = f"{path.resolve()}.data"
        self._met: set[tuple[Any, ...]] = set()
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
        shapes = tuple(array.shape for array in inputs.values())
        with nullcontext() if shapes in self._met else _given_back(self._weights):
            results = self._request.infer(dict(inputs), share_inputs=True)
        self._met.add(shapes)
        return {name: results[port] for name, port in self._outputs}


class Request:
    """A graph compiled for some shapes; its inputs and outputs always lie in the same memory."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = self._memory(compiled.inputs)
        self._outputs = self._memory(compiled.outputs)

    def _memory(self, ports: Sequence[Any]) -> dict[str, NDArray[Any]]:
        return {
            name: self._request.get_tensor(port).data for port in ports for name in port.get_names()
        }

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs as copies; where there are fewer rows than compiled for, the last fills up."""
        rows = 0
        for name, array in inputs.items():
            rows = len(array)
            self._inputs[name][:rows] = array
            self._inputs[name][rows:] = array[-1]
        self._request.infer(share_outputs=True)
        return {name: array[:rows].copy() for name, array in self._outputs.items()}


class StaticGraph:
    """A graph compiled for one set of shapes after the other, as they are met."""

    def __init__(
        self, core: Any, model: Any, options: dict[str, Any], lanes: Sequence["StaticGraph"] = ()
    ) -> None:
        self._inputs = _dtypes(model)
        self._lanes = lanes
        self._core = core
        self._options = options
        self._model = model
        self._requests: OrderedDict[tuple[Any, ...], Request] = OrderedDict()

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._inputs

    @property
    def lanes(self) -> Sequence["StaticGraph"]:
        """The same graph for each lane; none on a single core."""
        return self._lanes

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, as copies."""
        shapes = {name: (_batch(len(array)), *array.shape[1:]) for name, array in inputs.items()}
        key = tuple(sorted(shapes.items()))
        if key not in self._requests:
            model = self._model.clone()
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            self._requests[key] = Request(self._core.compile_model(model, "CPU", self._options))
            if len(self._requests) > COPIES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(key)
        return self._requests[key].run(inputs)


def _batch(rows: int) -> int:
    """The batch size that so many rows run in."""
    return next((batch for batch in BATCHES if batch >= rows), -(-rows // 8) * 8)


def _dtypes(graph: Any) -> dict[str, np.dtype[Any]]:
    return {
        name: np.dtype(port.get_element_type().to_dtype())
        for port in graph.inputs
        for name in port.get_names()
    }


def _widen(model: Any) -> None:
    """Compute in float32 where the graph says float16 or bfloat16.

    OpenVINO does so by itself, and keeps a copy of all weights in float32 beside those that it has
    packed for its kernels. Marked as what ``save_model`` compresses, they stay in their file until
    a kernel packs them: 0.6 of the memory in float32, 0.4 in bfloat16.
    """
    nodes = [each for each in model.get_ordered_ops() if each.get_output_size()]
    nodes = [each for each in nodes if each.get_output_element_type(0) in NARROW]
    weights = [each for each in nodes if each.get_type_name() == "Constant"]
    for constant, convert in zip(weights, _decompressions(len(weights)), strict=True):
        for target in constant.output(0).get_target_inputs():
            target.replace_source_output(convert.output(0))
        convert.input(0).replace_source_output(constant.output(0))
    for node in nodes:
        if node.get_type_name() == "Convert":
            node.set_attribute("destination_type", "f32")
    model.validate_nodes_and_infer_types()


def _never_one_row(model: Any) -> None:
    """Each product of (B, K) with a matrix is computed for twice as many rows.

    For a single row OpenVINO takes another kernel, whose last bits are others. With it, a sample
    would not be the same alone and in a batch, and most weights would be packed in two ways.
    """
    for node in model.get_ordered_ops():
        rows = node.input(0).get_source_output() if node.get_type_name() == "MatMul" else None
        if rows is None or rows.get_partial_shape().rank != 2:
            continue
        targets = node.output(0).get_target_inputs()
        node.input(0).replace_source_output(opset.concat([rows, rows], 0).output(0))
        halves = opset.split(node.output(0), opset.constant(0), 2)
        for target in targets:
            target.replace_source_output(halves.output(0))
    model.validate_nodes_and_infer_types()


def _decompressions(count: int) -> list[Any]:
    """Conversions to float32 that are marked as decompressions, which nothing in Python can do."""
    row = opset.parameter([1], np.float32)
    sums = [opset.add(row, opset.constant(np.array([k], np.float32))) for k in range(count)]
    model = openvino.Model([opset.result(each) for each in sums], [row], "weights")
    compress_model_transformation(model)
    return [each for each in model.get_ordered_ops() if each.get_type_name() == "Convert"]


@contextmanager
def _given_back(path: str) -> Iterator[None]:
    """Meanwhile a file's pages leave memory soon after they were read: each is packed once."""
    done = Event()

    def give_back() -> None:
        ended = False
        while not ended:
            ended = done.wait(0.1)  # and once more behind the end
            for line in Path("/proc/self/maps").read_text().splitlines():
                if line.endswith(path):
                    begin, _, end = line.split()[0].partition("-")
                    start = int(begin, 16)
                    _LIBC.madvise(c_void_p(start), c_size_t(int(end, 16) - start), _MADV_DONTNEED)

    thread = Thread(target=give_back, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
