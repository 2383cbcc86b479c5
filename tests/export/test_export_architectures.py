"""Every further architecture alike: its graphs, and whole pictures, are diffusers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines import tiny_flux
from students import plan_of, verified, write_card

from export.student import Student, load_student
from export.tokenizers import write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]


def _flux(folder: Path) -> Student:
    return load_student(write_card(tiny_flux(folder), name="flux", architecture="flux"))


def _flux_dev(folder: Path) -> Student:
    card = {"name": "flux-dev", "architecture": "flux", "guidance_scale": 3.5}
    return load_student(write_card(tiny_flux(folder, guidance=True), **card))


@pytest.fixture(scope="module", params=[_flux, _flux_dev], ids=lambda make: make.__name__[1:])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    made: Student = request.param(tmp_path_factory.mktemp("student") / "folder")
    return made


def test_every_component_and_whole_pictures_equal_diffusers(
    student: Student, tmp_path: Path, write_graph: WriteGraph
) -> None:
    for component in ("text_encoder", "transformer", "vae_decoder"):
        (tmp_path / f"{component}.onnx").symlink_to(write_graph(student, component, "fp32"))
    write_tokenizers(student.architecture.tokenizers(), tmp_path)
    verification = verified(student, tmp_path, plan_of(max_batch=3))
    assert not verification.failures
    assert "openvino-f32" in verification.served
    pictures = verification.to_json()["pictures"]
    assert min(p["psnr_db"] for p in pictures if p["runtime"] == "onnxruntime") > 80
