"""What Triton loads beside the graphs: the python model and its configurations."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

SOURCE = Path(__file__).parent / "triton"
KINDS = {"openvino": "KIND_CPU", "onnxruntime": "KIND_GPU", "tensorrt": "KIND_GPU"}


def write_triton_files(folder: Path, max_batch: int, runtime: str = "openvino") -> None:
    """Write ``1/model.py``, ``config.pbtxt`` and the other forms into a model folder.

    Triton takes ``config.pbtxt``, or with ``--model-config-name=NAME`` ``configs/NAME.pbtxt``.

    Args:
        folder: of the model.
        max_batch: the most pictures that share a step.
        runtime: the one of ``config.pbtxt``.
    """
    shutil.copyfile(SOURCE / "model.py", folder / "1" / "model.py")
    (folder / "configs").mkdir()
    paths = {name: folder / "configs" / f"{name}.pbtxt" for name in ("openvino", "onnxruntime")}
    for name, path in (paths | {runtime: folder / "config.pbtxt"}).items():
        path.write_text(model_config(max_batch, name), encoding="utf-8")


def model_config(max_batch: int, runtime: str) -> str:
    """The configuration for a runtime, on the device that it serves on."""
    template = Template((SOURCE / "config.pbtxt").read_text(encoding="utf-8"))
    return template.substitute(max_batch=max_batch, runtime=runtime, kind=KINDS[runtime])
