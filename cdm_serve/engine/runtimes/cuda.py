"""What the runtimes on a GPU share: cupy's arrays, which stay there."""

import contextlib
import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.runtime import Array
from cdm_serve.errors import StartError

# Of CUDA, those that CuPy is linked with; theirs lie beside them.
LIBRARIES = ("cudart", "nvrtc", "cublas", "curand", "cufft", "cusparse", "cusolver")


class Gpu:
    """One of the GPUs that this process sees, by its number from 0."""

    def __init__(self, device: int) -> None:
        """Look for it.

        Raises:
            StartError: it or cupy is missing.
        """
        _load_libraries()
        self._cupy = package("cupy", "'cdm-serve[cuda]'")
        try:
            count = self._cupy.cuda.runtime.getDeviceCount()
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            # Such as a driver that is too old.
            raise StartError(
                f"there is no GPU here ({error}): serve with runtime openvino, or go where one is"
            ) from error
        if device >= count:
            raise StartError(
                f"there is no GPU {device} here, they end at {count - 1}: change gpus in "
                "config.pbtxt, or CUDA_VISIBLE_DEVICES"
            )
        self.device = device

    def use(self) -> ModuleType:
        """Cupy, for this thread on this GPU: every thread has a current one of its own."""
        self._cupy.cuda.Device(self.device).use()
        return self._cupy

    def lost(self) -> bool:
        """Whether it does nothing more for this process: after some errors every call fails."""
        try:
            self.use().cuda.Stream.null.synchronize()
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return True
        return False

    def properties(self) -> dict[str, str]:
        """Its ``gpu``, the name, and ``compute_capability``."""
        found = self._cupy.cuda.runtime.getDeviceProperties(self.device)
        return {
            "gpu": found["name"].decode(),
            "compute_capability": f"{found['major']}.{found['minor']}",
        }


def _load_libraries() -> None:
    """CUDA's as pip installs them: CuPy before version 14 looks for the system's alone."""
    spec = importlib.util.find_spec("nvidia")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for name in LIBRARIES:
            for library in Path(folder, "cu13", "lib").glob(f"lib{name}.so.*"):
                with contextlib.suppress(OSError):  # CuPy then says what it lacks
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def address(array: Array) -> int:
    """Where an array of numpy or cupy begins."""
    pointer: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return pointer


def synchronize(arrays: ModuleType) -> None:
    """Wait until what cupy was asked for is done: the runtimes use streams of their own."""
    if arrays is not np:
        arrays.cuda.get_current_stream().synchronize()


def on_host(array: Array) -> NDArray[Any]:
    """The array in the memory of the CPU, through pinned memory: the GPU writes there itself."""
    if isinstance(array, np.ndarray):
        return array
    pinned = importlib.import_module("cupyx").empty_pinned(array.shape, array.dtype)
    host: NDArray[Any] = array.get(out=pinned)
    return host


def package(name: str, what: str) -> ModuleType:
    """The package; ``what`` is to be installed to have it.

    Raises:
        StartError: it is missing, or a library that it needs.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise StartError(f"the package {name} is missing: pip install {what}") from error
        why = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise StartError(
            f"the package {name} cannot be loaded ({why[0]}): pip install {what}"
        ) from error
