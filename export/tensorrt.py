"""Build TensorRT engines from the exported graphs.

Written for TensorRT 11, where a network is always strongly typed: the types are those of the
ONNX graph, and ``--precision`` is the way to choose them. Sources: NVIDIA's Python API
documentation of TensorRT 11.

The ``tensorrt`` entry of export.json: ``version``, ``gpu``, ``compute_capability``, ``options``
(``refit``, ``version_compatible``, ``hardware_compatible``) and ``components``, for each of which
``file``, ``sha256``, ``bytes``, ``onnx_sha256`` (of the graph it was built from, without external
data) and ``profiles``: for each of ``sizes`` in their order (the text encoder has one) ``size`` and
``shapes``, least, most frequent and largest by input. An engine runs with this TensorRT version,
or a later one if ``version_compatible``, and on this compute capability, or any GPU from Ampere
on if ``hardware_compatible``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdm_serve.engine.manifest import file_entry, file_sha256
from cdm_serve.engine.runtimes.cuda import Gpu
from cdm_serve.engine.runtimes.tensorrt import TensorRt, message_log
from cdm_serve.errors import StartError
from export.errors import ExportError
from export.profiles import Profile
from export.request import EngineOptions

LEAST_VERSION = 11
Report = Callable[[str, int, int], None]


def check_available() -> dict[str, str]:
    """The ``version`` to build with, the ``gpu`` to build for and its ``compute_capability``.

    Raises:
        ExportError: there is no GPU, or no TensorRT of the version this is written for.
    """
    try:
        found = TensorRt().version
        gpu = Gpu(0).properties()
    except StartError as error:
        raise ExportError(
            f"--to tensorrt builds on the GPU that will serve: {error}; run it there, or see what "
            "it would build with --dry-run"
        ) from error
    if int(found.split(".")[0]) < LEAST_VERSION:
        raise ExportError(
            f"tensorrt {found} is installed, {LEAST_VERSION} or later is needed: "
            f"pip install -U 'tensorrt>={LEAST_VERSION}'"
        )
    return {"version": found, **gpu}


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

    logger = message_log(trt)
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
    if cache is not None:
        _use_timings(config, cache)
    config.progress_monitor = _monitor(trt, report)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(f"TensorRT cannot build {onnx.name}: {logger.last}")
    engine.write_bytes(built)
    if cache is not None:
        temporary = cache.with_name(f".{cache.name}.new")
        temporary.write_bytes(config.get_timing_cache().serialize())
        temporary.replace(cache)


def stamp(
    folder: Path, profiles: dict[str, list[Profile]], options: EngineOptions, here: dict[str, str]
) -> dict[str, Any]:
    """The ``tensorrt`` entry of export.json for the engines in ``folder``."""
    return {
        **here,
        "options": {key: value for key, value in asdict(options).items() if key != "timing_cache"},
        "components": {
            component: {
                **file_entry(folder / f"{component}.plan"),
                "onnx_sha256": file_sha256(folder / f"{component}.onnx"),
                "profiles": [asdict(profile) for profile in each],
            }
            for component, each in profiles.items()
        },
    }


def _use_timings(config: Any, path: Path) -> None:
    """Those of an earlier build, or none where they are of another version or kind of GPU."""
    known = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
        print(f"TensorRT: {path} is of another version or GPU, kernels are timed anew")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


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
