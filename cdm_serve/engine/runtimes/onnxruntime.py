"""ONNX Runtime, on a GPU by its CUDA provider: arrays stay there between the runs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.cuda import Gpu, address, on_host, package, synchronize
from cdm_serve.engine.runtimes.runtime import Array, Arrays
from cdm_serve.errors import StartError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ARENAS = {"cpu": "cpu", "cuda": "gpu"}
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
}


# An arena as large as what was asked for, instead of the next power of two; and kernels chosen
# without trying out all of them, anew for every shape, in as much memory as they like.
OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
# Of a run: what it has taken, and all before it, goes back at its end.
GIVE_BACK = "memory.enable_memory_arena_shrinkage"
# Shapes that a graph remembers to have met.
SHAPES = 1024


class OnnxRuntime:
    """One device, ``cuda`` or ``cpu``: the latter, so that the code is tested without a GPU."""

    def __init__(self, device: str, number: int = 0) -> None:
        """Look for what is needed; ``number`` is the GPU's.

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
        self._gpu = None if device == "cpu" else Gpu(number)
        if self._gpu is not None:
            # CUDA's and cuDNN's libraries as pip installs them, which nothing else would find.
            self._onnxruntime.preload_dlls()

    @property
    def arrays(self) -> ModuleType:
        """Numpy or cupy."""
        return np if self._gpu is None else self._gpu.use()

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
        chosen = {} if self._gpu is None else OPTIONS | {"device_id": str(self._gpu.device)}
        session = self._onnxruntime.InferenceSession(
            str(path), options, providers=[(provider, chosen)]
        )
        # Without its libraries ONNX Runtime falls back to the CPU with no more than a log line.
        if session.get_providers()[0] != provider:
            raise StartError(
                f"ONNX Runtime could not start {provider}: install the CUDA and cuDNN versions "
                "that this onnxruntime-gpu asks for, `pip install 'cdm-serve[cuda]'`"
            )
        once = self._onnxruntime.RunOptions()
        number = 0 if self._gpu is None else self._gpu.device
        once.add_run_config_entry(GIVE_BACK, f"{ARENAS[self._device]}:{number}")
        return OnnxGraph(session, self._device, self._gpu, once)

    def lost(self) -> bool:
        """See ``Gpu``."""
        return self._gpu is not None and self._gpu.lost()

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return on_host(array)


class OnnxGraph:
    """A session whose inputs and outputs are bound where they lie.

    Each has an arena of its own, which grows with every new shape: regions that were too small
    stay, and the others' sessions cannot have them. So the first run of a shape, and the first
    after one that failed, gives all back but the weights; what is run again takes what it needs.
    One arena for all would be smaller, but they run at once, and ONNX Runtime gives memory that
    one stream still works on to another (microsoft/onnxruntime#32342).
    """

    def __init__(self, session: Any, device: str, gpu: Gpu | None, once: Any) -> None:
        """``once``: options of a run that gives back."""
        self._session = session
        self._once = once
        self._met: set[tuple[Any, ...]] = set()
        self._device = device
        self._gpu = gpu
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
        arrays, number = (np, 0) if self._gpu is None else (self._gpu.use(), self._gpu.device)
        binding = self._session.io_binding()
        # Held until the run is over: only their addresses are bound.
        held = {name: arrays.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in held.items():
            type_, shape = array.dtype.type, array.shape
            binding.bind_input(name, self._device, number, type_, shape, address(array))
        for name in self._outputs:
            binding.bind_output(name, self._device, number)
        synchronize(arrays)
        shapes = tuple(array.shape for array in held.values())
        options = None if shapes in self._met else self._once
        if options is not None and len(self._met) == SHAPES:
            self._met.clear()
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception:
            self._met.clear()
            raise
        self._met.add(shapes)
        values = zip(self._outputs.items(), binding.get_outputs(), strict=True)
        return {name: _copy(value, dtype, arrays) for (name, dtype), value in values}


def _copy(value: Any, dtype: np.dtype[Any], arrays: ModuleType) -> Array:
    """Of what ONNX Runtime allocated, which it takes back."""
    if arrays is np:
        return value.numpy().copy()
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize
    memory = arrays.cuda.UnownedMemory(value.data_ptr(), size, value)
    return arrays.ndarray(shape, dtype, arrays.cuda.MemoryPointer(memory, 0)).copy()
