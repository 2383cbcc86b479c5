"""The first GPU, by the driver's own library: no torch and no TensorRT is needed to look."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

# From cuda.h.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and compute capability, such as ``9.0``."""

    name: str
    compute_capability: str


def first_gpu() -> Gpu | None:
    """The first GPU that the driver shows; ``None`` without a driver or a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    cuda.cuDeviceGetName(name, len(name), device)
    version = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        version.append(str(value.value))
    return Gpu(name.value.decode(), ".".join(version))
