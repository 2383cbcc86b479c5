"""ONNX Runtime, on a GPU by its CUDA provider: arrays stay there between the runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.cuda import address, cupy_on_gpu, on_host, package, synchronize
from cdm_serve.engine.runtimes.runtime import Array, Arrays
from cdm_serve.errors import StartError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


class OnnxRuntime:
    """One device, ``cuda`` or ``cpu``: the latter, so that the code is tested without a GPU."""

    def __init__(self, device: str) -> None:
        """Look for what is needed.

        Raises:
            StartError: a package, the provider or the GPU is missing.
        """
        self._device = device
        self._onnxruntime = package("onnxruntime", "'cdm-serve[cuda]'")
        if PROVIDERS[device] not in self._onnxruntime.get_available_providers():
            raise StartError(
                f"this onnxruntime has no {PROVIDERS[device]}: "
                "pip uninstall onnxruntime, then pip install 'cdm-serve[cuda]'"
            )
        self._arrays = np if device == "cpu" else cupy_on_gpu()

    @property
    def arrays(self) -> ModuleType:
        """Numpy or cupy."""
        return self._arrays

    @property
    def overlaps(self) -> bool:
        """Streams of a GPU do."""
        return True

    @property
    def batches(self) -> str:
        """CUDA's libraries choose kernels by the whole shape."""
        return "exact" if self._device == "cpu" else "close"

    def load(self, path: Path) -> "OnnxGraph":
        """A session for an ONNX file.

        Raises:
            StartError: the provider could not be started.
        """
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        provider = PROVIDERS[self._device]
        session = self._onnxruntime.InferenceSession(str(path), options, providers=[provider])
        # Without its libraries ONNX Runtime falls back to the CPU with no more than a log line.
        if session.get_providers()[0] != provider:
            raise StartError(
                f"ONNX Runtime could not start {provider}: install the CUDA and cuDNN versions "
                "that this onnxruntime-gpu asks for"
            )
        return OnnxGraph(session, self._device, self._arrays)

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return on_host(array)


class OnnxGraph:
    """A session whose inputs and outputs are bound where they lie."""

    def __init__(self, session: Any, device: str, arrays: ModuleType) -> None:
        self._session = session
        self._device = device
        self._arrays = arrays
        self._inputs = {each.name: np.dtype(TYPES[each.type]) for each in session.get_inputs()}
        self._outputs = {each.name: np.dtype(TYPES[each.type]) for each in session.get_outputs()}

    @property
    def lanes(self) -> Sequence["OnnxGraph"]:
        """None."""
        return ()

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Name and element type of each input."""
        return self._inputs

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """The outputs by name, in memory of their own on the device."""
        binding = self._session.io_binding()
        # Held until the run is over: only their addresses are bound.
        held = {name: self._arrays.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in held.items():
            binding.bind_input(name, self._device, 0, array.dtype.type, array.shape, address(array))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        synchronize(self._arrays)
        self._session.run_with_iobinding(binding)
        values = zip(self._outputs.items(), binding.get_outputs(), strict=True)
        return {name: self._array(value, dtype) for (name, dtype), value in values}

    def _array(self, value: Any, dtype: np.dtype[Any]) -> Array:
        """A copy of what ONNX Runtime allocated, which it takes back."""
        if self._arrays is np:
            return value.numpy().copy()
        shape = tuple(value.shape())
        size = math.prod(shape) * dtype.itemsize
        memory = self._arrays.cuda.UnownedMemory(value.data_ptr(), size, value)
        view = self._arrays.ndarray(shape, dtype, self._arrays.cuda.MemoryPointer(memory, 0))
        return view.copy()
