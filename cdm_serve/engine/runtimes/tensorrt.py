"""TensorRT engines (version 11), built beforehand for this GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.cuda import address, cupy_on_gpu, on_host, package
from cdm_serve.engine.runtimes.runtime import Array, Arrays
from cdm_serve.errors import StartError


class TensorRt:
    """The GPU that the engines were built for."""

    def __init__(self) -> None:
        """Look for what is needed.

        Raises:
            StartError: a package or the GPU is missing.
        """
        index = "--extra-index-url https://pypi.nvidia.com"
        self._tensorrt = package("tensorrt", f"'cdm-serve[tensorrt]' {index}")
        self._cupy = cupy_on_gpu()
        self._runtime = self._tensorrt.Runtime(self._tensorrt.Logger(self._tensorrt.Logger.ERROR))

    @property
    def arrays(self) -> ModuleType:
        """Cupy."""
        return self._cupy

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
            StartError: there is none, or it was built by another version or for another GPU.
        """
        path = path.with_suffix(".plan")
        if not path.is_file():
            raise StartError(
                f"{path} is missing: build it here with `cdm-export STUDENT --to tensorrt`"
            )
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise StartError(
                f"{path} was not built for this GPU by TensorRT {self._tensorrt.__version__}: "
                "build it here with `cdm-export STUDENT --to tensorrt`"
            )
        return TensorRtGraph(self._tensorrt, engine, self._cupy)

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return on_host(array)


class TensorRtGraph:
    """An engine with one execution context, on a stream of its own."""

    def __init__(self, tensorrt: ModuleType, engine: Any, cupy: ModuleType) -> None:
        self._cupy = cupy
        # Kept: a context does not keep its engine alive.
        self._engine = engine
        self._context = engine.create_execution_context()
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
        held = {name: self._cupy.ascontiguousarray(array) for name, array in inputs.items()}
        profile = self._profile({name: array.shape for name, array in held.items()})
        self._context.set_optimization_profile_async(profile, self._stream.ptr)
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise RuntimeError(f"the engine was not built for {name} of {array.shape}")
            self._context.set_tensor_address(name, address(array))
        outputs = {}
        for name, dtype in self._outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = self._cupy.empty(shape, dtype)
            self._context.set_tensor_address(name, address(outputs[name]))
        self._cupy.cuda.get_current_stream().synchronize()
        if not self._context.execute_async_v3(self._stream.ptr):
            raise RuntimeError("TensorRT failed; its log says why")
        self._stream.synchronize()
        return outputs

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
