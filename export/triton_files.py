"""What Triton loads beside the graphs: the python model and its configurations."""

from __future__ import annotations

import shutil
from pathlib import Path
from string import Template

SOURCE = Path(__file__).parent / "triton"
# Without gpus Triton would start an instance on every GPU, of which no request knows which it gets.
PLACES = {
    "openvino": "kind: KIND_CPU",
    "onnxruntime": "kind: KIND_GPU gpus: [ 0 ]",
    "tensorrt": "kind: KIND_GPU gpus: [ 0 ]",
}


def write_triton_files(folder: Path, max_batch: int, *, engines: bool = False) -> None:
    """Write ``1/model.py``, ``config.pbtxt`` and its other forms into a model folder.

    Triton takes ``config.pbtxt``, which is that for a CPU or, if there are TensorRT ``engines``,
    for them; or with ``--model-config-name=cpu`` (or ``gpu``) the form for such a machine.
    """
    shutil.copyfile(SOURCE / "model.py", folder / "1" / "model.py")
    (folder / "configs").mkdir()
    forms = {
        "configs/cpu.pbtxt": "openvino",
        "configs/gpu.pbtxt": "tensorrt" if engines else "onnxruntime",
        "config.pbtxt": "tensorrt" if engines else "openvino",
    }
    for name, runtime in forms.items():
        (folder / name).write_text(model_config(max_batch, runtime), encoding="utf-8")


def model_config(max_batch: int, runtime: str) -> str:
    """The configuration for a runtime, on the device that it serves on."""
    template = Template((SOURCE / "config.pbtxt").read_text(encoding="utf-8"))
    return template.substitute(max_batch=max_batch, runtime=runtime, place=PLACES[runtime])
