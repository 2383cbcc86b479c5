"""Build TensorRT engines from the exported graphs.

Written for TensorRT 11, where a network is always strongly typed: the types are those of the
ONNX graph, and ``--precision`` is the way to choose them. Sources: NVIDIA's Python API
documentation of TensorRT 11.

The ``tensorrt`` entry of export.json: ``version``, ``gpu``, ``compute_capability``, ``options``
(``refit``, ``version_compatible``, ``hardware_compatible``) and ``components``, for each of which
``file``, ``sha256``, ``onnx_sha256`` (of the graph it was built from, without external data) and
``profiles``: for each of ``sizes`` in their order (the text encoder has one) ``size`` and
``shapes``, least, most frequent and largest by input. An engine runs with this TensorRT version,
or a later one if ``version_compatible``, and on this compute capability, or any GPU from Ampere
on if ``hardware_compatible``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cdm_serve.engine.manifest import file_sha256
from export.errors import ExportError
from export.profiles import Profile
from export.request import EngineOptions

LEAST_VERSION = 11
_CAPABILITY = (75, 76)  # major and minor, from cuda.h
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and compute capability, such as ``9.0``."""

    name: str
    compute_capability: str


def check_available() -> Gpu:
    """The GPU to build for.

    Raises:
        ExportError: there is no GPU or no TensorRT of the version this is written for.
    """
    gpu = first_gpu()
    if gpu is None:
        raise ExportError(
            "--to tensorrt builds on the GPU that will serve, and none is visible here; run it "
            "there, with --gpus all in a container, or see what it would build with --dry-run"
        )
    for package in ("tensorrt", "cupy"):
        if find_spec(package) is None:
            raise ExportError(
                f"{package} is not installed; get it with: "
                "pip install 'cdm-serve[export,tensorrt]' "
                "--extra-index-url https://pypi.nvidia.com, or use the container "
                "nvcr.io/nvidia/tensorrt"
            )
    found = version("tensorrt")
    if int(found.split(".")[0]) < LEAST_VERSION:
        raise ExportError(
            f"tensorrt {found} is installed, {LEAST_VERSION} or later is needed: "
            f"pip install -U 'tensorrt>={LEAST_VERSION}' --extra-index-url https://pypi.nvidia.com"
        )
    return gpu


def first_gpu() -> Gpu | None:
    """The first GPU that the driver shows; ``None`` without a driver or a GPU.

    By the driver's own library: no torch and no TensorRT is needed to look.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    cuda.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in _CAPABILITY:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return Gpu(name.value.decode(), ".".join(capability))


def build_engine(
    onnx: Path, engine: Path, profiles: list[Profile], options: EngineOptions, report: Report
) -> None:
    """Build ``engine`` from ``onnx``, whose external data lies beside it.

    Args:
        onnx: the graph.
        engine: to be written.
        profiles: one for each size.
        options: of the build.
        report: called with a phase's name, the steps done and all its steps.

    Raises:
        ExportError: TensorRT does not take the graph, or cannot build it.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(f"TensorRT does not take {onnx.name}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for each in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in each.shapes.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    cache = options.timing_cache
    known = cache.read_bytes() if cache is not None and cache.exists() else b""
    config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    config.progress_monitor = _monitor(trt, report)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(f"TensorRT cannot build {onnx.name}; its own message stands above")
    engine.write_bytes(built)
    if cache is not None:
        temporary = cache.with_name(f".{cache.name}.new")
        temporary.write_bytes(config.get_timing_cache().serialize())
        temporary.replace(cache)


def stamp(
    folder: Path, profiles: dict[str, list[Profile]], options: EngineOptions, gpu: Gpu
) -> dict[str, Any]:
    """The ``tensorrt`` entry of export.json for the engines in ``folder``."""
    return {
        "version": version("tensorrt"),
        **asdict(gpu),
        "options": {key: value for key, value in asdict(options).items() if key != "timing_cache"},
        "components": {
            component: {
                "file": f"{component}.plan",
                "sha256": file_sha256(folder / f"{component}.plan"),
                "onnx_sha256": file_sha256(folder / f"{component}.onnx"),
                "profiles": [asdict(profile) for profile in each],
            }
            for component, each in profiles.items()
        },
    }


def _monitor(trt: Any, report: Report) -> Any:
    """TensorRT's progress, of the outermost phase: the inner ones come and go in thousands."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                report(phase_name, step + 1, self.steps[phase_name])
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.steps:
                report(phase_name, self.steps[phase_name], self.steps.pop(phase_name))

    return Monitor()
