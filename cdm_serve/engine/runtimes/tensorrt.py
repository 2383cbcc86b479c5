"""TensorRT engines (version 11), built beforehand for this GPU."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.cuda import Gpu, address, on_host, package, synchronize
from cdm_serve.engine.runtimes.runtime import Array, Arrays
from cdm_serve.errors import StartError

BUILD = "build them here with `cdm-export STUDENT --to tensorrt`"
# Shapes of which a graph keeps its work, those met last.
SHAPES = 64


class TensorRt:
    """The GPU that the engines were built for."""

    def __init__(self, device: int = 0, stamp: Mapping[str, Any] | None = None) -> None:
        """Look for what is needed.

        Args:
            device: the GPU's number.
            stamp: what the engines were built by and for, see ``export.tensorrt``; None: here.

        Raises:
            StartError: a package or the GPU is missing, or they are not those of the engines.
        """
        self._tensorrt = package("tensorrt", "'cdm-serve[tensorrt]'")
        self._gpu = Gpu(device)
        self.version: str = self._tensorrt.__version__
        if stamp is not None:
            check_stamp(stamp, self.version, self._gpu.properties())
        self._gpu.use()
        self._log = message_log(self._tensorrt)
        self._runtime = self._tensorrt.Runtime(self._log)
        # Engines for several versions contain code for the CPU. They are trusted like the model.py
        # that lies beside them.
        self._runtime.engine_host_code_allowed = True

    @property
    def arrays(self) -> ModuleType:
        """Cupy."""
        return self._gpu.use()

    @property
    def overlaps(self) -> bool:
        """Streams of a GPU do."""
        return True

    @property
    def batches(self) -> str:
        """TensorRT chooses kernels by the whole shape."""
        return "close"

    def load(self, path: Path) -> "TensorRtGraph":
        """The engine that lies beside an ONNX file.

        Raises:
            StartError: there is none, it is not for this GPU or version, or memory ran out.
        """
        path = path.with_suffix(".plan")
        if not path.is_file():
            raise StartError(f"{path} is missing, the engines were not built: {BUILD}")
        self._gpu.use()
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise StartError(
                f"TensorRT {self.version} does not take {path} ({self._log.last}): {BUILD}"
            )
        try:
            return TensorRtGraph(self._tensorrt, engine, self._gpu, self._log)
        except MemoryError as error:
            raise StartError(
                f"no memory on the GPU to run {path} ({error}): export it with a smaller "
                "--max-batch, or end what else uses the GPU"
            ) from error

    def lost(self) -> bool:
        """See ``Gpu``."""
        return self._gpu.lost()

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return on_host(array)


@dataclass(frozen=True)
class Work:
    """An engine's work for inputs of certain shapes, between arrays that stay where they are.

    ``graph`` is the same as a CUDA graph, which starts hundreds of kernels as one; None where it
    could not be captured. The context is left alone from then on, as TensorRT asks.
    """

    context: Any
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    graph: Any


class TensorRtGraph:
    """An engine with an execution context for each shape, on a stream of its own."""

    def __init__(self, tensorrt: ModuleType, engine: Any, gpu: Gpu, log: Any) -> None:
        """Take the memory that any of its shapes needs; all have the same, one after the other.

        Raises:
            MemoryError: there is not enough.
        """
        # The engine is kept: a context does not keep it alive.
        self._engine, self._gpu, self._log = engine, gpu, log
        self._works: OrderedDict[tuple[Any, ...], Work] = OrderedDict()
        self._by_user = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        cupy = gpu.use()
        self._size: int = engine.device_memory_size_v2
        self._memory = cupy.cuda.alloc(self._size)  # its OutOfMemoryError is a MemoryError
        self._stream = cupy.cuda.Stream(non_blocking=True)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        dtypes = {name: np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))) for name in names}
        inputs = [
            name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
        ]
        self._inputs = {name: dtypes[name] for name in inputs}
        self._outputs = {name: dtypes[name] for name in names if name not in inputs}

    @property
    def lanes(self) -> Sequence["TensorRtGraph"]:
        """None."""
        return ()

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._inputs

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, in memory of their own on the device.

        Raises:
            RuntimeError: TensorRT refused the shapes or failed.
        """
        cupy = self._gpu.use()
        key = tuple((name, array.shape) for name, array in sorted(inputs.items()))
        if key not in self._works:
            self._works[key] = self._prepare(dict(key))
            if len(self._works) > SHAPES:
                self._works.popitem(last=False)
        self._works.move_to_end(key)
        work = self._works[key]
        for name, array in inputs.items():
            work.inputs[name][...] = array
        synchronize(cupy)
        if work.graph is None:
            self._execute(work.context)
        else:
            work.graph.launch(self._stream)
        self._stream.synchronize()
        return {name: array.copy() for name, array in work.outputs.items()}

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> Work:
        """A context for these shapes, run once, and captured."""
        cupy = self._gpu.use()
        context = self._engine.create_execution_context(self._by_user)
        if context is None:
            raise RuntimeError(f"TensorRT has no memory for {shapes}: {self._log.last}")
        context.set_device_memory(self._memory.ptr, self._size)
        profile = self._profile(shapes)
        if not context.set_optimization_profile_async(profile, self._stream.ptr):
            raise RuntimeError(f"TensorRT did not change to profile {profile}: {self._log.last}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"the engine was not built for {name} of {shape}")
        inputs = {name: cupy.zeros(shape, self._inputs[name]) for name, shape in shapes.items()}
        outputs = {
            name: cupy.empty(tuple(context.get_tensor_shape(name)), dtype)
            for name, dtype in self._outputs.items()
        }
        for name, array in (inputs | outputs).items():
            context.set_tensor_address(name, address(array))
        synchronize(cupy)
        # Not captured: here TensorRT works out what follows from the shapes.
        self._execute(context)
        self._stream.synchronize()
        return Work(context, inputs, outputs, self._captured(context))

    def _captured(self, context: Any) -> Any:
        """The work of a context as a CUDA graph, or None: some layers wait for the CPU."""
        try:
            self._stream.begin_capture()
            try:
                self._execute(context)
            finally:
                graph = self._stream.end_capture()
        except RuntimeError as error:  # as CUDA's errors are
            print(f"TensorRT: no CUDA graph, its kernels are started one by one: {error}")
            return None
        return graph

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.ptr):
            raise RuntimeError(f"TensorRT failed: {self._log.last}")

    def _profile(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """The optimisation profile, one for each picture size, that holds these shapes."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._holds(index, name, shape) for name, shape in shapes.items()):
                return index
        raise RuntimeError(f"the engine was not built for {shapes}")

    def _holds(self, index: int, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, index)
        sides = zip(tuple(least), shape, tuple(most), strict=True)
        return all(low <= side <= high for low, side, high in sides)


def check_stamp(stamp: Mapping[str, Any], version: str, gpu: Mapping[str, str]) -> None:
    """Whether engines can run with this version on this GPU, before TensorRT is asked.

    Raises:
        StartError: they were built by another version, or for another kind of GPU.
    """
    built, options = stamp["version"], stamp["options"]
    if version != built and not (
        options["version_compatible"] and _number(version) > _number(built)
    ):
        raise StartError(
            f"the engines were built by TensorRT {built}, here is {version}: {BUILD}, or install "
            f"tensorrt=={built}"
        )
    wanted, found = stamp["compute_capability"], gpu["compute_capability"]
    ampere = _number(found) >= (8,) and _number(wanted) >= (8,)
    if found != wanted and not (options["hardware_compatible"] and ampere):
        raise StartError(
            f"the engines were built for {stamp['gpu']} (compute capability {wanted}), here is "
            f"{gpu['gpu']} ({found}): {BUILD}"
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def message_log(tensorrt: ModuleType) -> Any:
    """TensorRT's messages: errors are printed, and the last one kept, since calls only say no."""

    class Log(tensorrt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.last = "it gives no reason"

        def log(self, severity: Any, msg: str) -> None:
            if severity in (
                tensorrt.ILogger.Severity.ERROR,
                tensorrt.ILogger.Severity.INTERNAL_ERROR,
            ):
                self.last = msg.strip()
                print(f"TensorRT: {self.last}", flush=True)

    return Log()
