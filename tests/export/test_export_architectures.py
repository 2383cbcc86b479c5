"""Every further architecture alike: its graphs, and whole pictures, are diffusers' own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from students import FAMILIES, family, plan_of, verified

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL
from export.student import Student, load_student
from export.tokenizers import write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "flux"]


@pytest.fixture(scope="module", params=["flux", *SLOW])
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    return load_student(family(request.param, tmp_path_factory.mktemp("student") / "folder"))


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
