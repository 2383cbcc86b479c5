"""Packages of a GPU that no machine of the tests has, as small as they can be and still be honest.

``install`` puts a cupy, an onnxruntime-gpu and a tensorrt into ``sys.modules``, with the
signatures of cupy 13.6, onnxruntime-gpu 1.31 and TensorRT 11.4, whose graphs are computed by the
CPU's ONNX Runtime. They are strict where the real ones are: arrays of the device do not mix with
numpy's, each thread has a current device, TensorRT gives None or False where it cannot, and rows
depend a little on their company. Whatever is asked for on a stream, and be it an addition of
cupy's, is done when somebody waits for that stream, and not before: until then its memory holds
NaN, or the largest integer, so that a wait that is missing is seen in the pictures. And so does
memory that was given back, from the next thing on that the null stream does.
"""

import json
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

DRIFT = np.float32(1.001)
MEMORY: dict[int, np.ndarray] = {}
PINNED: set[int] = set()


@dataclass
class Machine:
    """What is there, and what it was asked for."""

    gpus: int = 2
    version: str = "11.4.0.106"
    capability: tuple[int, int] = (9, 0)
    cudnn: bool = True
    memory: int = 80 << 30
    captures: bool = True
    contexts: int = 1000
    broken: bool = False
    arenas: list[list[int]] = field(default_factory=list)
    launched: set[tuple[int, ...]] = field(default_factory=set)
    used: set[tuple[str, int]] = field(default_factory=set)
    current: threading.local = field(default_factory=threading.local)

    @property
    def device(self) -> int:
        return getattr(self.current, "device", 0)


def unwritten(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Memory before anything was written there."""
    integers = np.issubdtype(dtype, np.integer)
    return np.full(shape, np.iinfo(dtype).max if integers else np.nan, dtype)


def spoil(memory: np.ndarray) -> None:
    """Whoever had it does so no more."""
    memory[...] = unwritten(memory.shape, memory.dtype)


class DeviceArray:
    """An array of cupy: no numpy array, on one device, and computed on the null stream."""

    __array_ufunc__ = None

    def __init__(self, machine: Machine, host: np.ndarray, owner: Any = None) -> None:
        self._machine = machine
        self._host = host
        self._owner = owner
        self._device = machine.device
        self.data = types.SimpleNamespace(ptr=host.ctypes.data)
        MEMORY[host.ctypes.data] = host
        if owner is None:
            weakref.finalize(self, Stream.null.add, lambda: spoil(host)).atexit = False
        machine.used.add(("cupy", self._device))

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    nbytes = property(lambda self: self._host.nbytes)

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __len__(self) -> int:
        return len(self._host)

    def __setitem__(self, key: Any, value: "DeviceArray") -> None:
        assert self.dtype == value.dtype
        part, given = self._host[key], self._operand(value)
        Stream.null.add(lambda: np.copyto(part, given))

    def __getitem__(self, key: Any) -> "DeviceArray":
        return DeviceArray(self._machine, self._host[key], self)

    def __add__(self, other: "DeviceArray") -> "DeviceArray":
        return self.made(np.add, other)

    def __mul__(self, other: "DeviceArray") -> "DeviceArray":
        return self.made(np.multiply, other)

    def astype(self, dtype: Any, copy: bool = True) -> "DeviceArray":
        return self.made(lambda a: a.astype(dtype)) if copy or dtype != self.dtype else self

    def copy(self) -> "DeviceArray":
        return self.made(np.copy)

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        assert out.ctypes.data in PINNED, "to memory that the GPU cannot write to"
        host = self._host
        Stream.null.add(lambda: np.copyto(out, host))
        if blocking:
            Stream.null.synchronize()
        return out

    def made(self, compute: Callable[..., np.ndarray], *others: "DeviceArray") -> "DeviceArray":
        """What comes of it and others, once it is waited for."""
        assert self._machine.device == self._device, "the thread's current device is another"
        operands = [self._host, *map(self._operand, others)]

        @np.errstate(all="ignore")
        def computed() -> np.ndarray:
            return compute(*operands)

        like = computed()
        host = unwritten(like.shape, like.dtype)
        Stream.null.add(lambda: np.copyto(host, computed()))
        return DeviceArray(self._machine, host)

    def _operand(self, other: Any) -> np.ndarray:
        if not isinstance(other, DeviceArray):
            raise TypeError(f"Unsupported type {type(other)}")
        assert other._device == self._device, "arrays of two devices"
        return other._host


class CUDARuntimeError(RuntimeError):
    """After some of these every call fails."""


class Stream:
    """Does what it was given, in that order, when it is waited for, unless it is captured.

    None waits for another: with ``non_blocking`` not even for the null stream, which is cupy's.
    """

    machine: Machine | None = None
    null: "Stream"

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        assert null or non_blocking, "one that waits for the null stream, which is not played here"
        self.work: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.invalid = False
        self.ptr = id(self)
        self._turn = threading.Lock()
        STREAMS[self.ptr] = self

    def add(self, work: Callable[[], None]) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def synchronize(self) -> None:
        assert self.captured is None, "cudaErrorStreamCaptureUnsupported"
        if self.machine is not None and self.machine.broken:
            raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access")
        with self._turn:
            while self.work:
                self.work.pop(0)()

    def begin_capture(self, mode: Any = None) -> None:
        self.captured, self.invalid = [], False

    def end_capture(self) -> "CudaGraph":
        assert self.captured is not None
        graph, self.captured = CudaGraph(self.captured), None
        if self.invalid:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return graph


class CudaGraph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self.work = work

    def launch(self, stream: Stream) -> None:
        for each in self.work:
            stream.add(each)


STREAMS: dict[int, Stream] = {}


def fake_cupy(machine: Machine) -> types.ModuleType:
    cupy: Any = types.ModuleType("cupy")

    def count() -> int:
        if not machine.gpus:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return machine.gpus

    class Device:
        def __init__(self, device: int) -> None:
            self.id = device

        def use(self) -> None:
            machine.current.device = self.id

    def empty(shape: Sequence[int], dtype: Any) -> DeviceArray:
        return DeviceArray(machine, unwritten(shape, dtype))

    def written(host: np.ndarray) -> DeviceArray:
        array = empty(host.shape, host.dtype)
        Stream.null.add(lambda: np.copyto(array._host, host))
        return array

    def asarray(array: Any) -> DeviceArray:
        return array if isinstance(array, DeviceArray) else written(np.array(array))

    def ascontiguousarray(array: DeviceArray) -> DeviceArray:
        return array[...] if array._host.flags.c_contiguous else array.copy()

    def stack(arrays: Sequence[DeviceArray]) -> DeviceArray:
        return arrays[0].made(lambda *hosts: np.stack(hosts), *arrays[1:])

    def ndarray(shape: Sequence[int], dtype: Any, memptr: Any) -> DeviceArray:
        host = memptr.mem.owner.numpy().view(dtype).reshape(shape)
        return DeviceArray(machine, host, memptr)

    def alloc(size: int) -> Any:
        if size > machine.memory:
            raise MemoryError(f"Out of memory allocating {size:,} bytes")
        return types.SimpleNamespace(ptr=0xC0DE, size=size)

    def properties(device: int) -> dict[str, Any]:
        major, minor = machine.capability
        return {"name": b"NVIDIA Fake", "major": major, "minor": minor, "totalGlobalMem": 80 << 30}

    Stream.machine = machine
    Stream.null = null = Stream(null=True)
    cupy.__version__ = "13.6.0"
    cupy.asarray, cupy.ndarray, cupy.empty = asarray, ndarray, empty
    cupy.ascontiguousarray, cupy.stack = ascontiguousarray, stack
    cupy.zeros = lambda shape, dtype: written(np.zeros(shape, dtype))
    cupy.cuda = types.SimpleNamespace(
        Device=Device,
        Stream=Stream,
        alloc=alloc,
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


def fake_cupyx(machine: Machine) -> types.ModuleType:
    def empty_pinned(shape: Sequence[int], dtype: Any = float, order: str = "C") -> np.ndarray:
        made = unwritten(shape, dtype)
        PINNED.add(made.ctypes.data)
        return made

    cupyx: Any = types.ModuleType("cupyx")
    cupyx.empty_pinned = empty_pinned
    return cupyx


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
            self._same = chosen.get("arena_extend_strategy") == "kSameAsRequested"
            self.arena: list[int] = []
            self._given: list[tuple[Any, np.ndarray]] = []
            machine.arenas.append(self.arena)
            self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

        def get_providers(self) -> list[str]:
            return self._providers

        def io_binding(self) -> "Binding":
            return Binding(self)

        def run_with_iobinding(self, binding: "Binding", run_options: Any = None) -> None:
            machine.used.add(("onnxruntime", self.device))
            if machine.broken:
                raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
            for value, array in self._given:
                if value() is None:  # its memory is another's now
                    spoil(array)
            # On a stream of its own, which is waited for before this returns.
            outputs = self._session.run(binding.outputs, binding.inputs)
            self._take(sum(each.nbytes for each in (*binding.inputs.values(), *outputs)))
            binding.values = [Value(each) for each in drifted(outputs)]
            self._given = [(weakref.ref(each), each.array) for each in binding.values]
            if run_options is not None:
                shrunk = run_options.get_run_config_entry("memory.enable_memory_arena_shrinkage")
                assert shrunk == f"gpu:{self.device}"
                self.arena.clear()

        def _take(self, size: int) -> None:
            """A region that is free and large enough, or another one; none goes by itself."""
            if all(region < size for region in self.arena):
                left = machine.memory - sum(map(sum, machine.arenas))
                size = size if self._same else 1 << size.bit_length()
                self.arena.append(min(size, left))
                if size > left:
                    raise RuntimeError(f"Failed to allocate memory for a buffer of size {size}")

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
    module.preload_dlls, module.RunOptions = preload_dlls, onnxruntime.RunOptions
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
            self.device_memory_size_v2 = 9 << 30

        def create_execution_context(self, strategy: str) -> "Context | None":
            assert strategy == "by user"
            if not machine.contexts:
                self._logger.log(ILogger.Severity.ERROR, "Cuda Runtime (out of memory)")
                return None
            machine.contexts -= 1
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
        """Its state is one with what was captured from it."""

        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._profile = 0
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._memory = 0
            self._settled = self._captured = False

        def _changed(self) -> None:
            assert not self._captured, "a context was changed that a CUDA graph was captured from"
            self._settled = False

        def set_device_memory(self, memory: int, size: int) -> None:
            self._changed()
            self._memory = size

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self._changed()
            self._profile = profile_index
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self._changed()
            least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
            self._shapes[name] = shape
            return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._changed()
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
            assert self._memory >= self._engine.device_memory_size_v2
            stream = STREAMS[stream_handle]
            if stream.captured is not None:
                if not machine.captures or not self._settled:
                    stream.invalid = True
                    return False
                self._captured = True
            self._settled = True
            stream.add(self._compute)
            return True

        def _compute(self) -> None:
            machine.used.add(("tensorrt", self._engine.device))
            if self._captured:
                machine.launched.add(self._shapes.get("latents", ()))
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
            if machine.memory < 9 << 30:
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
            """Of no other version; what it knows is of one kind of GPU."""
            here = f"{machine.version} for {machine.capability}: ".encode()
            known = serialized_timing_cache or here
            if not known.startswith(machine.version.encode()):
                return None
            return types.SimpleNamespace(serialize=lambda: known + b"timing", here=here)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if not ignore_mismatch and not cache.serialize().startswith(cache.here):
                return False
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
    trt.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="by user")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="input", OUTPUT="output")
    trt.nptype = types_.__getitem__
    return trt


def on_device(host: np.ndarray) -> DeviceArray:
    """For tests that call a graph themselves."""
    made: DeviceArray = sys.modules["cupy"].asarray(host)
    return made


PACKAGES = (fake_cupy, fake_cupyx, fake_onnxruntime, fake_tensorrt)


def install(
    patch: pytest.MonkeyPatch, machine: Machine, packages: Sequence[Any] = PACKAGES
) -> Machine:
    """Have them imported from now on."""
    MEMORY.clear()
    for make in packages:
        patch.setitem(sys.modules, make.__name__.removeprefix("fake_"), make(machine))
    return machine
