"""What the runtimes on a GPU share: cupy's arrays, which stay there."""

import importlib
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.runtime import Array
from cdm_serve.errors import StartError


def cupy_on_gpu() -> ModuleType:
    """The package cupy, whose arrays lie on the GPU.

    Raises:
        StartError: it or a GPU is missing.
    """
    cupy = package("cupy", "'cdm-serve[cuda]'")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    if not count:
        raise StartError("there is no GPU here: serve with runtime openvino, or go where one is")
    return cupy


def address(array: Array) -> int:
    """Where an array of numpy or cupy begins."""
    pointer: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return pointer


def synchronize(arrays: ModuleType) -> None:
    """Wait until what cupy was asked for is done: the runtimes use streams of their own."""
    if arrays is not np:
        arrays.cuda.get_current_stream().synchronize()


def on_host(array: Array) -> NDArray[Any]:
    """The array in the memory of the CPU."""
    host: NDArray[Any] = array if isinstance(array, np.ndarray) else array.get()
    return host


def package(name: str, what: str) -> ModuleType:
    """The package; ``what`` is to be installed to have it.

    Raises:
        StartError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StartError(f"the package {name} is missing: pip install {what}") from error
