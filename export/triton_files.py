"""What Triton loads beside the graphs: the python model and its configurations."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

SOURCE = Path(__file__).parent / "triton"
# Triton takes config.pbtxt, or with --model-config-name=NAME configs/NAME.pbtxt.
RUNTIMES = {"openvino": "KIND_CPU", "onnxruntime": "KIND_GPU", "tensorrt": "KIND_GPU"}


def write_triton_files(folder: Path, max_batch: int, runtime: str = "openvino") -> None:
    """Write ``1/model.py``, ``config.pbtxt`` and the other forms into a model folder.

    Args:
        folder: of the model.
        max_batch: the most pictures that share a step.
        runtime: the one of ``config.pbtxt``.
    """
    shutil.copyfile(SOURCE / "model.py", folder / "1" / "model.py")
    text = (SOURCE / "config.pbtxt").read_text(encoding="utf-8")
    _write(folder / "config.pbtxt", model_config(text, max_batch, runtime))
    (folder / "configs").mkdir()
    for name in ("openvino", "onnxruntime"):  # the graphs are there in any case
        if name != runtime:
            form = model_config(text, max_batch, name)
            _write(folder / "configs" / f"{name}.pbtxt", form)


def model_config(template: str, max_batch: int, runtime: str) -> str:
    """The CPU form ``template`` with its batch, device and ``runtime`` parameter set.

    Raises:
        ValueError: the template is not of the shape that this was written for.
    """
    text = _set_parameter(template, "max_batch", str(max_batch))
    if runtime == "openvino":
        return text
    text = _set_parameter(text, "runtime", runtime)
    return _substitute(r"kind: KIND_CPU", f"kind: {RUNTIMES[runtime]}", text)


def _set_parameter(text: str, key: str, value: str) -> str:
    pattern = rf'(key: "{key}" value {{ string_value: )"[^"]*"'
    return _substitute(pattern, rf'\g<1>"{value}"', text)


def _substitute(pattern: str, replacement: str, text: str) -> str:
    changed, count = re.subn(pattern, replacement, text)
    if count != 1:
        raise ValueError(f"config.pbtxt has {count} places like {pattern}, expected one")
    return changed


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
