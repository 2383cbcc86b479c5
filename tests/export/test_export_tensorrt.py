"""What can be known of TensorRT engines without a GPU: shapes, operators, types, refusals."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import fake_gpu
import onnx
import pytest
from engine_graphs import check_operators, check_profiles
from students import FAMILIES, family

from cdm_serve.engine.manifest import COMPONENTS
from export.cli import main
from export.errors import ExportError
from export.plan import Plan, plan
from export.profiles import Profile, profiles, trtexec
from export.request import EngineOptions, Request, Size
from export.student import Student, load_student
from export.tensorrt import build_engine

WriteGraph = Callable[[Student, str, str], Path]
SIZES = (Size(64, 64), Size(72, 56))


@pytest.fixture(scope="session")
def made(student: Student) -> tuple[Plan, dict[str, list[Profile]]]:
    request = Request(Path("student"), Path("out"), sizes=SIZES, max_batch=4)
    made = plan(request, student)
    return made, profiles(student, made)


def test_no_network_is_run_to_learn_a_shape(
    student: Student, made: tuple[Plan, dict[str, list[Profile]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for network in student.adapter.networks.values():
        monkeypatch.setattr(network, "forward", None)
    assert profiles(student, made[0]) == made[1]


def test_a_longcat_has_profiles_of_its_own_inputs(longcat: Student) -> None:
    request = Request(Path("student"), Path("out"), sizes=SIZES, max_batch=2)
    shapes = profiles(longcat, plan(request, longcat))
    assert shapes["text_encoder"][0].shapes["attention_mask_0"] == ((1, 512), (2, 512), (2, 512))
    assert set(shapes["transformer"][0].shapes) == {"latents", "sigma", "prompt_embeds"}
    assert shapes["transformer"][1].shapes["prompt_embeds"][0] == (1, 512, 32)


@pytest.mark.parametrize(
    "architecture, precision, component",
    [
        pytest.param("student", "bf16", "transformer", marks=pytest.mark.slow),
        pytest.param("student", "bf16", "vae_decoder", marks=pytest.mark.slow),
        ("student", "fp16", "transformer"),
        ("longcat", "fp32", "transformer"),
        pytest.param("longcat", "fp32", "text_encoder", marks=pytest.mark.slow),
    ],
)
def test_operators_and_types_are_documented(
    request: pytest.FixtureRequest,
    write_graph: WriteGraph,
    architecture: str,
    precision: str,
    component: str,
) -> None:
    student = request.getfixturevalue(architecture)
    check_operators(onnx.load(write_graph(student, component, precision)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_other_architectures(
    name: str, tmp_path: Path, write_graph: WriteGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = family(name, tmp_path / name)
    student = load_student(folder)
    half = plan(Request(folder, tmp_path, tensorrt=EngineOptions()), student).precision.name
    for precision, component in product({half, "bf16"}, (*COMPONENTS, "vae_encoder")):
        check_operators(onnx.load(write_graph(student, component, precision)))
    options = ["--to", "tensorrt", "--dry-run", "--sizes", "64x64,72x56", "--max-batch", "4"]
    assert main([str(folder), *options, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "--maxShapes=latents:4x" in printed and "--profile=1" in printed
    request = Request(folder, tmp_path, sizes=SIZES, max_batch=4, tensorrt=EngineOptions())
    shapes = profiles(student, plan(request, student))
    for component, each in shapes.items():
        check_profiles(component, each, onnx.load(write_graph(student, component, half)))


def test_trtexec_lines() -> None:
    shape = ((1, 4, 8, 8), (2, 4, 8, 8), (2, 4, 8, 8))
    sigma = ((1,), (2,), (2,))
    one = Profile("64x64", {"latents": shape, "sigma": sigma})
    options = EngineOptions(True, True, True, Path("timing.cache"))
    assert trtexec("transformer", [one], options) == (
        "trtexec --onnx=transformer.onnx --saveEngine=transformer.plan "
        "--minShapes=latents:1x4x8x8,sigma:1 --optShapes=latents:2x4x8x8,sigma:2 "
        "--maxShapes=latents:2x4x8x8,sigma:2 --refit --versionCompatible "
        "--hardwareCompatibilityLevel=ampere+ --timingCacheFile=timing.cache --skipInference"
    )
    two = trtexec("transformer", [one, one], EngineOptions()).split()
    assert two[3] == "--profile=0" and two[7] == "--profile=1"


def test_a_dry_run_shows_profiles_and_writes_nothing(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(student_folder), "--to", "tensorrt", "--out", str(tmp_path / "out")]
    assert main([*command, "--sizes", "64x64,72x56", "--max-batch", "4", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    assert ["transformer", "1:", "72x56", "latents"] + ["1x4x14x18"] + ["4x4x14x18"] * 2 in rows
    assert ["text_encoder", "0", "input_ids_2", "1x16", "4x16", "4x16"] in rows
    commands = [line for line in lines if line.startswith("trtexec ")]
    assert [row.split()[1] for row in commands] == [
        f"--onnx={component}.onnx" for component in (*COMPONENTS, "vae_encoder")
    ]
    assert not (tmp_path / "out").exists()


def test_engines_are_of_half_precision_and_graphs_of_float32_by_default(
    student: Student, longcat: Student
) -> None:
    graphs = Request(Path("student"), Path("out"))
    engines = Request(Path("student"), Path("out"), tensorrt=EngineOptions())
    assert plan(engines, student).precision.name == "fp16"
    assert plan(engines, longcat).precision.name == "bf16"
    assert plan(graphs, longcat).precision.name == "fp32"
    assert plan(replace(engines, precision="fp32"), longcat).precision.name == "fp32"


PACKAGES = (fake_gpu.fake_cupy, fake_gpu.fake_cupyx, fake_gpu.fake_tensorrt)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_gpu.Machine:
    return fake_gpu.install(monkeypatch, fake_gpu.Machine(), PACKAGES)


def test_an_engine_that_cannot_be_built_is_told_with_tensorrts_reason(
    gpu: fake_gpu.Machine, tmp_path: Path
) -> None:
    gpu.memory = 1 << 30
    graph = tmp_path / "vae_decoder.onnx"
    with pytest.raises(ExportError, match=r"cannot build vae_decoder\.onnx: no implement"):
        build_engine(graph, tmp_path / "plan", [], EngineOptions(), lambda *progress: None)


@pytest.mark.parametrize("changed", [{"version": "11.5.0.1"}, {"capability": (8, 0)}])
def test_timings_of_another_version_or_gpu_are_not_used(
    changed: dict[str, Any],
    gpu: fake_gpu.Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "timing"
    options = EngineOptions(timing_cache=cache)

    def build() -> bytes:
        build_engine(tmp_path / "x.onnx", tmp_path / "plan", [], options, lambda *progress: None)
        return cache.read_bytes()

    assert [build().count(b"timing") for _ in range(2)] == [1, 2]
    assert not capsys.readouterr().out
    for name, value in changed.items():
        setattr(gpu, name, value)
    fake_gpu.install(monkeypatch, gpu, PACKAGES)
    assert build().count(b"timing") == 1
    assert f"{cache} is of another version or GPU" in capsys.readouterr().out


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student's description is looked at, and nothing is loaded."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    command = [str(tmp_path), "--to", "tensorrt", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cdm-export: --to tensorrt builds on the GPU that will serve")
    assert "--dry-run" in line
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_tensorrts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command: list[Any] = [tmp_path, "--to", "onnx", "--out", tmp_path, "--dry-run"]
    assert main([str(word) for word in command]) == 2
    assert "--dry-run shows TensorRT engines" in capsys.readouterr().err
