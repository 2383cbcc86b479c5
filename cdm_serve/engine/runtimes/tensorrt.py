"""TensorRT engines (version 11), built beforehand for this GPU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdm_serve.engine.runtimes.cuda import Gpu, address, on_host, package, synchronize
from cdm_serve.engine.runtimes.runtime import Array, Arrays
from cdm_serve.errors import StartError

BUILD = "build them here with `cdm-export STUDENT --to tensorrt`"


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
        index = "--extra-index-url https://pypi.nvidia.com"
        self._tensorrt = package("tensorrt", f"'cdm-serve[tensorrt]' {index}")
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
        context = engine.create_execution_context()
        if context is None:
            raise StartError(
                f"no memory on the GPU to run {path} ({self._log.last}): export it with a smaller "
                "--max-batch, or end what else uses the GPU"
            )
        return TensorRtGraph(self._tensorrt, engine, context, self._gpu, self._log)

    def to_host(self, array: Array) -> NDArray[Any]:
        """The array in the memory of the CPU."""
        return on_host(array)


class TensorRtGraph:
    """An engine with one execution context, on a stream of its own."""

    def __init__(self, tensorrt: ModuleType, engine: Any, context: Any, gpu: Gpu, log: Any) -> None:
        # The engine is kept: a context does not keep it alive.
        self._engine, self._context, self._gpu, self._log = engine, context, gpu, log
        self._stream = gpu.use().cuda.Stream(non_blocking=True)
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
        held = {name: cupy.ascontiguousarray(array) for name, array in inputs.items()}
        profile = self._profile({name: array.shape for name, array in held.items()})
        if not self._context.set_optimization_profile_async(profile, self._stream.ptr):
            raise RuntimeError(f"TensorRT did not change to profile {profile}: {self._log.last}")
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise RuntimeError(f"the engine was not built for {name} of {array.shape}")
            self._context.set_tensor_address(name, address(array))
        outputs = {}
        for name, dtype in self._outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = cupy.empty(shape, dtype)
            self._context.set_tensor_address(name, address(outputs[name]))
        synchronize(cupy)
        if not self._context.execute_async_v3(self._stream.ptr):
            raise RuntimeError(f"TensorRT failed: {self._log.last}")
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
