"""TensorRT engines by ``cdm-export`` as it is called, on packages that fail as the real ones do.

From the shared export's graphs: torch's exporter would write the same bytes again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import fake_gpu
import onnx
import pytest
from conftest import Once
from engine_graphs import check_operators, check_profiles

from cdm_serve.engine.manifest import COMPONENTS, read_manifest
from cdm_serve.engine.runtimes import runtime_for
from cdm_serve.errors import StartError
from export.cli import main
from export.plan import plan
from export.profiles import profiles
from export.request import Request, Size
from export.student import load_student

PACKAGES = (fake_gpu.fake_cupy, fake_gpu.fake_cupyx, fake_gpu.fake_tensorrt)


@pytest.fixture(scope="session")
def built(student: Path, repository: Path, once: Once) -> Path:
    """The model folder with engines, and beside it the timings of their kernels.

    Though a picture in a batch is not the same to the bit as alone, as on a GPU.
    """

    def export(folder: Path) -> None:
        def written(graph: object, path: Path, **_: Any) -> None:
            shutil.copy(repository / "tiny" / "1" / path.name, path)

        command = [str(student), "--to", "tensorrt", "--out", str(folder), "--precision", "fp32"]
        command += ["--sizes", "64x64", "--max-batch", "2", "--verify", "quick"]
        command += ["--version-compatible", "--timing-cache", f"{folder}/timing"]
        with pytest.MonkeyPatch.context() as patch:
            fake_gpu.install(patch, fake_gpu.Machine(), PACKAGES)
            patch.setattr("export.exporter.write_onnx", written)
            assert main(command) == 0

    return once("built", export) / "tiny"


def test_engines_are_built_compared_and_stamped(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = fake_gpu.install(monkeypatch, fake_gpu.Machine(), PACKAGES)
    manifest = read_manifest(built / "1", full=True)
    compared = json.loads((built / "1" / "export.json").read_text())["verification"]
    assert "tensorrt" in {each["runtime"] for each in compared["pictures"]}
    assert "tensorrt" in manifest.runtimes and manifest.engines is not None
    assert manifest.engines["version"] == gpu.version
    assert manifest.engines["compute_capability"] == "9.0"
    assert json.loads((built / "1" / "transformer.plan").read_text())["host_code"]
    assert (built.parent / "timing").read_bytes().endswith(b": " + 4 * b"timing")
    # What is served from it is what was compared; and it knows where it can be.
    assert runtime_for(manifest, "tensorrt", "auto").batches == "close"
    gpu.capability = (8, 0)
    with pytest.raises(StartError, match="the engines were built for NVIDIA Fake"):
        runtime_for(manifest, "tensorrt", "auto")


def test_profiles_fit_the_graphs(student: Path, repository: Path) -> None:
    """Every input has shapes, of its rank and with its fixed axes; equal names, equal lengths."""
    loaded = load_student(student)
    request = Request(student, student, sizes=(Size(64, 64), Size(72, 56)), max_batch=4)
    shapes = profiles(loaded, plan(request, loaded))
    assert [len(each) for each in shapes.values()] == [1, 2, 2, 2]
    for component, each in shapes.items():
        check_profiles(component, each, onnx.load(repository / "tiny" / "1" / f"{component}.onnx"))
    latents = [profile.shapes["latents"][2] for profile in shapes["transformer"]]
    assert latents == [(4, 4, 16, 16), (4, 4, 14, 18)]
    assert [profile.size for profile in shapes["transformer"]] == ["64x64", "72x56"]


@pytest.mark.parametrize("component", [*COMPONENTS, "vae_encoder", "tiny_decoder"])
def test_operators_and_types_are_documented(repository: Path, component: str) -> None:
    check_operators(onnx.load(repository / "tiny" / "1" / f"{component}.onnx"))
