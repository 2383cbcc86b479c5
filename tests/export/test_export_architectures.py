"""Every further architecture alike: its graphs, and whole pictures, are diffusers' own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines import tiny_flux, tiny_klein, tiny_qwen_image, tiny_z_image
from students import plan_of, verified, write_card

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL
from export.student import Student, load_student
from export.tokenizers import write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]

# What makes the pipeline, and what the student's card says.
MADE: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "flux": (tiny_flux, {"architecture": "flux"}),
    "flux-dev": (
        lambda folder: tiny_flux(folder, guidance=True),
        {"architecture": "flux", "guidance_scale": 3.5},
    ),
    "klein": (tiny_klein, {"architecture": "flux2-klein", "max_sequence_length": 60}),
    "qwen-image": (tiny_qwen_image, {"architecture": "qwen-image", "max_sequence_length": 350}),
    "z-image": (
        tiny_z_image,
        {"architecture": "z-image", "guidance_scale": 0.0, "max_sequence_length": 96},
    ),
}
FIRST, *OTHERS = MADE


@pytest.fixture(
    scope="module", params=[FIRST, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)]
)
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    make, card = MADE[request.param]
    folder = make(tmp_path_factory.mktemp("student") / "folder")
    return load_student(write_card(folder, name=request.param, **card))


def test_every_component_and_whole_pictures_equal_diffusers(
    student: Student, tmp_path: Path, write_graph: WriteGraph
) -> None:
    for component in (*COMPONENTS, *OPTIONAL):
        (tmp_path / f"{component}.onnx").symlink_to(write_graph(student, component, "fp32"))
    write_tokenizers(student.architecture.tokenizers(), tmp_path)
    verification = verified(student, tmp_path, plan_of(max_batch=3))
    assert not verification.failures
    assert "openvino-f32" in verification.served
    pictures = verification.to_json()["pictures"]
    assert min(p["psnr_db"] for p in pictures if p["runtime"] == "onnxruntime") > 80
