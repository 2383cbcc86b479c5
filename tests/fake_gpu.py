"""Packages of a GPU that no machine of the tests has, as small as they can be and still be honest.

``install`` puts a cupy, an onnxruntime-gpu and a tensorrt into ``sys.modules``, with the
signatures of cupy 13.6, onnxruntime-gpu 1.31 and TensorRT 11.4, whose graphs are computed by the
CPU's ONNX Runtime. They are strict where the real ones are: arrays of the device do not mix with
numpy's, each thread has a current device, what was asked for on a stream is not there before the
stream is synchronised, TensorRT gives None or False where it cannot, and rows depend a little on
their company.
"""

import json
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

DRIFT = np.float32(1.001)
MEMORY: dict[int, np.ndarray] = {}


@dataclass
class Machine:
    """What is there, and what it was asked for."""

    gpus: int = 2
    version: str = "11.4.0.106"
    capability: tuple[int, int] = (9, 0)
    cudnn: bool = True
    context_memory: bool = True
    used: set[tuple[str, int]] = field(default_factory=set)
    current: threading.local = field(default_factory=threading.local)

    @property
    def device(self) -> int:
        return getattr(self.current, "device", 0)


class DeviceArray:
    """An array of cupy: no numpy array, and on one device."""

    __array_ufunc__ = None

    def __init__(self, machine: Machine, host: np.ndarray) -> None:
        self._machine = machine
        self._host = host
        self._device = machine.device
        self.data = types.SimpleNamespace(ptr=host.ctypes.data)
        MEMORY[host.ctypes.data] = host
        machine.used.add(("cupy", self._device))

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    nbytes = property(lambda self: self._host.nbytes)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, key: Any) -> "DeviceArray":
        return self._made(self._host[key])

    def __add__(self, other: "DeviceArray") -> "DeviceArray":
        return self._made(self._host + self._operand(other))

    def __mul__(self, other: "DeviceArray") -> "DeviceArray":
        return self._made(self._host * self._operand(other))

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        return self._made(self._host.astype(dtype, copy=copy))

    def copy(self) -> "DeviceArray":
        return self._made(self._host.copy())

    def get(self) -> np.ndarray:
        return self._host.copy()

    def _operand(self, other: Any) -> np.ndarray:
        if not isinstance(other, DeviceArray):
            raise TypeError(f"Unsupported type {type(other)}")
        assert other._device == self._device, "arrays of two devices"
        return other._host

    def _made(self, host: np.ndarray) -> "DeviceArray":
        assert self._machine.device == self._device, "the thread's current device is another"
        return DeviceArray(self._machine, host)


class Stream:
    """Does what it was given when it is waited for."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.work: list[Callable[[], None]] = []
        self.ptr = id(self)
        STREAMS[self.ptr] = self

    def synchronize(self) -> None:
        while self.work:
            self.work.pop(0)()


STREAMS: dict[int, Stream] = {}


def fake_cupy(machine: Machine) -> types.ModuleType:
    cupy: Any = types.ModuleType("cupy")

    class CUDARuntimeError(RuntimeError):
        pass

    def count() -> int:
        if not machine.gpus:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return machine.gpus

    class Device:
        def __init__(self, device: int) -> None:
            self.id = device

        def use(self) -> None:
            machine.current.device = self.id

    def made(host: np.ndarray) -> DeviceArray:
        return DeviceArray(machine, host)

    def asarray(array: Any) -> DeviceArray:
        return array if isinstance(array, DeviceArray) else made(np.array(array))

    def ndarray(shape: Sequence[int], dtype: Any, memptr: Any) -> DeviceArray:
        return made(memptr.mem.owner.numpy().view(dtype).reshape(shape))

    def empty(shape: Sequence[int], dtype: Any) -> DeviceArray:
        return made(np.full(shape, 77, dtype))

    def properties(device: int) -> dict[str, Any]:
        major, minor = machine.capability
        return {"name": b"NVIDIA Fake", "major": major, "minor": minor, "totalGlobalMem": 80 << 30}

    null = Stream(null=True)
    cupy.__version__ = "13.6.0"
    cupy.asarray, cupy.ndarray, cupy.empty = asarray, ndarray, empty
    cupy.ascontiguousarray = lambda a: a._made(np.ascontiguousarray(a._host))
    cupy.stack = lambda arrays: arrays[0]._made(np.stack([each._host for each in arrays]))
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: null,
        MemoryPointer=lambda mem, offset: types.SimpleNamespace(mem=mem, offset=offset),
        UnownedMemory=lambda ptr, size, owner: types.SimpleNamespace(ptr=ptr, owner=owner),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=count,
            getDeviceProperties=properties,
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        ),
    )
    return cupy


def drifted(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """As libraries that choose other kernels for other shapes."""
    many = len(outputs[0]) > 1
    return [o * DRIFT if many and o.dtype == np.float32 else o for o in outputs]


def fake_onnxruntime(machine: Machine) -> types.ModuleType:
    module: Any = types.ModuleType("onnxruntime")
    loaded: list[bool] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[tuple[str, dict]]) -> None:
            (name, chosen) = providers[0]
            assert all(isinstance(value, str) for value in chosen.values())
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            on_gpu = name == "CUDAExecutionProvider" and machine.cudnn and loaded
            self._providers = [name] if on_gpu else ["CPUExecutionProvider"]
            self.device = int(chosen["device_id"])
            self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

        def get_providers(self) -> list[str]:
            return self._providers

        def io_binding(self) -> "Binding":
            return Binding(self)

        def run_with_iobinding(self, binding: "Binding") -> None:
            machine.used.add(("onnxruntime", self.device))
            outputs = self._session.run(binding.outputs, binding.inputs)
            binding.values = [Value(each) for each in drifted(outputs)]

    class Value:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def numpy(self) -> np.ndarray:
            return self.array

        def shape(self) -> list[int]:
            return list(self.array.shape)

        def data_ptr(self) -> int:
            return self.array.ctypes.data

    class Binding:
        def __init__(self, session: Session) -> None:
            self._session = session
            self.inputs: dict[str, np.ndarray] = {}
            self.outputs: list[str] = []
            self.values: list[Value] = []

        def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
            self._where(device_type, device_id)
            self.inputs[name] = MEMORY[buffer_ptr].view(element_type).reshape(shape)

        def bind_output(self, name, device_type="cpu", device_id=0):
            self._where(device_type, device_id)
            self.outputs.append(name)

        def get_outputs(self) -> list[Value]:
            return self.values

        def _where(self, device_type: str, device_id: int) -> None:
            assert (device_type, device_id) == ("cuda", self._session.device)

    def preload_dlls(cuda=True, cudnn=True, msvc=True, directory=None):
        loaded.append(True)

    module.__version__ = "1.31.1"
    module.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    module.SessionOptions, module.InferenceSession = onnxruntime.SessionOptions, Session
    module.preload_dlls = preload_dlls
    return module


def write_engine(graph: Path, machine: Machine, profiles: list[Any], **changed: Any) -> Path:
    """What stands in for an engine: all that decides whether TensorRT takes it, and its graph."""
    plan = {"version": machine.version, "capability": list(machine.capability), "host_code": False}
    plan |= {"graph": str(graph), "profiles": profiles}
    path = graph.with_suffix(".plan")
    path.write_text(json.dumps(plan | changed))
    return path


def fake_tensorrt(machine: Machine) -> types.ModuleType:
    trt: Any = types.ModuleType("tensorrt")

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = range(3)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> "Engine | None":
            plan = json.loads(serialized_engine)
            complaint = None
            if plan["version"] != machine.version and not plan["host_code"]:
                complaint = f"expecting library version {plan['version']} got {machine.version}"
            elif plan["capability"] != list(machine.capability):
                complaint = "Target GPU SM is not compatible with the plan"
            elif plan["host_code"] and not self.engine_host_code_allowed:
                complaint = "deserialization of engines with host code is not allowed"
            if complaint:
                self._logger.log(ILogger.Severity.ERROR, complaint)
                return None
            return Engine(plan, self._logger)

    class Engine:
        def __init__(self, plan: dict[str, Any], logger: Any) -> None:
            self._logger = logger
            self.session = onnxruntime.InferenceSession(
                plan["graph"], providers=["CPUExecutionProvider"]
            )
            self.device = machine.device
            self._profiles = plan["profiles"]
            self._inputs = {each.name: each for each in self.session.get_inputs()}
            self._outputs = {each.name: each for each in self.session.get_outputs()}
            self._names = [*self._inputs, *self._outputs]
            self.num_io_tensors = len(self._names)
            self.num_optimization_profiles = len(self._profiles)

        def create_execution_context(self) -> "Context | None":
            if not machine.context_memory:
                self._logger.log(ILogger.Severity.ERROR, "out of memory: requested 9663676416")
                return None
            return Context(self)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_dtype(self, name: str) -> str:
            return (self._inputs | self._outputs)[name].type

        def get_tensor_mode(self, name: str) -> str:
            return "input" if name in self._inputs else "output"

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            return self._profiles[profile_index][name]

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._profile = 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self._profile = profile_index
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
            self._shapes[name] = shape
            return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            symbols = {
                axis: self._shapes[each.name][index]
                for each in self._engine.session.get_inputs()
                for index, axis in enumerate(each.shape)
            }
            (output,) = [o for o in self._engine.session.get_outputs() if o.name == name]
            # Axes are numbers, or sums of the inputs' axes such as 4*height.
            return tuple(eval(str(axis), {}, symbols) for axis in output.shape)

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert machine.device == self._engine.device
            STREAMS[stream_handle].work.append(self._compute)
            return True

        def _compute(self) -> None:
            machine.used.add(("tensorrt", self._engine.device))
            inputs = {n: MEMORY[self._addresses[n]].reshape(s) for n, s in self._shapes.items()}
            names = [each.name for each in self._engine.session.get_outputs()]
            outputs = drifted(self._engine.session.run(names, inputs))
            for name, array in zip(names, outputs, strict=True):
                MEMORY[self._addresses[name]][...] = array

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int = 0) -> Any:
            return types.SimpleNamespace(path=None)

        def create_builder_config(self) -> "Config":
            return Config()

        def create_optimization_profile(self) -> "Profile":
            return Profile()

        def build_serialized_network(self, network: Any, config: "Config") -> bytes | None:
            config.progress_monitor.phase_start("Building", None, 2)
            for step in range(2):
                if not config.progress_monitor.step_complete("Building", step):
                    return None
            config.progress_monitor.phase_finish("Building")
            if not machine.context_memory:
                self._logger.log(ILogger.Severity.ERROR, "no implementation fits the memory")
                return None
            plan = {"version": machine.version, "capability": machine.capability}
            plan |= {"host_code": "version" in config.flags, "graph": network.path}
            plan["profiles"] = [each.shapes for each in config.profiles]
            return json.dumps(plan).encode()

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self.shapes[input] = (min, opt, max)

    class Config:
        def __init__(self) -> None:
            self.flags: set[str] = set()
            self.profiles: list[Profile] = []
            self.progress_monitor: Any = None
            self._cache: Any = None

        def set_flag(self, flag: str) -> None:
            self.flags.add(flag)

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            return types.SimpleNamespace(serialize=lambda: serialized_timing_cache + b"timing")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            self._network.path = model
            return True

    types_ = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
    trt.__version__ = machine.version
    trt.ILogger, trt.Runtime, trt.Builder, trt.OnnxParser = ILogger, Runtime, Builder, OnnxParser
    trt.IProgressMonitor = IProgressMonitor
    trt.BuilderFlag = types.SimpleNamespace(REFIT="refit", VERSION_COMPATIBLE="version")
    trt.HardwareCompatibilityLevel = types.SimpleNamespace(AMPERE_PLUS="ampere")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="input", OUTPUT="output")
    trt.nptype = types_.__getitem__
    return trt


PACKAGES = (fake_cupy, fake_onnxruntime, fake_tensorrt)


def install(
    patch: pytest.MonkeyPatch, machine: Machine, packages: Sequence[Any] = PACKAGES
) -> Machine:
    """Have them imported from now on."""
    MEMORY.clear()
    for make in packages:
        patch.setitem(sys.modules, make.__name__.removeprefix("fake_"), make(machine))
    return machine
