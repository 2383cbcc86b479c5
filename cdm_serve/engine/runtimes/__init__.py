"""The runtimes that graphs can be run in, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from cdm_serve.engine.manifest import Manifest
from cdm_serve.engine.runtimes.cuda import package
from cdm_serve.engine.runtimes.runtime import Runtime
from cdm_serve.errors import StartError

RUNTIMES = ("openvino", "onnxruntime", "tensorrt")
# What ONNX Runtime is given on a GPU.
GPU_PRECISIONS = ("fp32", "fp16")


def fit_precision(fit: Sequence[str], name: str, precision: str) -> str:
    """The precision to open a runtime in, such that it is one of those fit for an export.

    Args:
        fit: runtimes in which the export held everything, as export.json names them.
        name: of the runtime. The export does not try ONNX Runtime on a GPU, so it may be any.
        precision: ``auto`` falls back to f32 where bf16 is not fit.

    Raises:
        StartError: it is not fit.
    """
    if name == "openvino" and precision == "auto" and "openvino-bf16" not in fit:
        precision = "f32"
    wanted = {"openvino": "openvino-f32" if precision == "auto" else f"openvino-{precision}"}
    if name != "onnxruntime" and wanted.get(name, name) not in fit:
        raise StartError(
            f"the export was not found fit for {wanted.get(name, name)}, only for "
            f"{', '.join(fit) or 'none'}: export again here with cdm-export, or choose another "
            "runtime or precision in config.pbtxt"
        )
    return precision


def runtime_for(manifest: Manifest, name: str, precision: str, device: int = 0) -> Runtime:
    """The runtime of this name, opened so that it is fit for an export.

    Raises:
        ValueError: an unknown name or precision.
        StartError: a package or the GPU is missing, or the export is not fit for it.
    """
    precision = fit_precision(manifest.runtimes, name, precision)
    if name == "onnxruntime" and manifest.precision not in GPU_PRECISIONS:
        raise StartError(
            f"the export is in {manifest.precision}, and ONNX Runtime serves "
            f"{' or '.join(GPU_PRECISIONS)} on a GPU: export again with --precision fp16, or with "
            "--to tensorrt"
        )
    return open_runtime(name, precision, device, manifest.engines)


def check_alike(first: Manifest, other: Manifest, name: str, precision: str) -> None:
    """Whether a variant may be run as the model is, in whose process it is served.

    Raises:
        StartError: it is not fit for that.
    """
    chosen = [fit_precision(each.runtimes, name, precision) for each in (first, other)]
    kinds = [(each.precision, each.engines is None) for each in (first, other)]
    if chosen[0] != chosen[1] or kinds[0] != kinds[1]:
        raise StartError(
            f"variant {other.name} is for {kinds[1][0]} in {name} ({chosen[1]}), the model "
            f"{first.name} for {kinds[0][0]} ({chosen[0]}): export both in the same way, or the "
            "variant as a model of its own"
        )


def open_runtime(
    name: str, precision: str, device: int = 0, engines: Mapping[str, Any] | None = None
) -> Runtime:
    """The runtime of this name; ``precision`` is what it may compute in, where it has a choice.

    Args:
        name: one of ``RUNTIMES``.
        precision: ``auto``, or the runtime's own.
        device: the GPU's number, where it is one.
        engines: what TensorRT's engines were built by and for.

    Raises:
        ValueError: an unknown name or precision.
        StartError: a package or the GPU is missing, or is not that of the engines.
    """
    # Each is imported when it is asked for: no machine needs the packages of all.
    if name == "openvino":
        package("openvino", "'cdm-serve[cpu]'")
        from cdm_serve.engine.runtimes.openvino import OpenVino

        return OpenVino(precision)
    if name == "onnxruntime":
        from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime("cuda", device)
    if name == "tensorrt":
        from cdm_serve.engine.runtimes.tensorrt import TensorRt

        return TensorRt(device, engines)
    raise ValueError(f"runtime {name!r} is none of {', '.join(RUNTIMES)}")
