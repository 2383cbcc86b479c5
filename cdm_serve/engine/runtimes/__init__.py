"""The runtimes that graphs can be run in, by name."""

from collections.abc import Sequence

from cdm_serve.engine.runtimes.runtime import Runtime
from cdm_serve.errors import StartError

RUNTIMES = ("openvino", "onnxruntime", "tensorrt")


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


def open_runtime(name: str, precision: str) -> Runtime:
    """The runtime of this name; ``precision`` is what it may compute in, where it has a choice.

    Raises:
        ValueError: an unknown name or precision.
        StartError: a package or a GPU is missing.
    """
    # Each is imported when it is asked for: no machine needs the packages of all.
    if name == "openvino":
        from cdm_serve.engine.runtimes.openvino import OpenVino

        return OpenVino(precision)
    if name == "onnxruntime":
        from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime

        return OnnxRuntime("cuda")
    if name == "tensorrt":
        from cdm_serve.engine.runtimes.tensorrt import TensorRt

        return TensorRt()
    raise ValueError(f"runtime {name!r} is none of {', '.join(RUNTIMES)}")
