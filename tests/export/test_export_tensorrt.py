"""What can be known of TensorRT engines without a GPU: shapes, operators, types, refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import onnx
import pytest
from students import FAMILIES, family

from cdm_serve.engine.manifest import COMPONENTS, OPTIONAL, read_manifest
from cdm_serve.engine.runtimes import runtime_for
from cdm_serve.errors import StartError
from export.cli import main
from export.errors import ExportError
from export.plan import Plan, plan
from export.profiles import Profile, profiles, trtexec
from export.request import EngineOptions, Request, Size
from export.student import Student, load_student
from export.tensorrt import build_engine

WriteGraph = Callable[[Student, str, str], Path]
SIZES = (Size(64, 64), Size(72, 56))

# docs/operators.md of onnx-tensorrt for TensorRT 10.15: those marked Y, without recurrent,
# random, quantized and pooling ones. The types beside them there: floats, int32, int64, bool, and
# uint8 as what passes in or out, cast there and nowhere else (TensorRT's DataType.UINT8).
_DOCUMENTED = """
Abs Add And ArgMax ArgMin Attention BatchNormalization Cast CastLike Ceil Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace Div Dropout Einsum Elu Equal Erf Exp
Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater
GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization IsInf
IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max Mean Min Mod
Mul Neg NonZero Not OneHot Or Pad Pow PRelu RMSNormalization Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin
Size Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tan Tanh Tile TopK Transpose Trilu
Unsqueeze Where Xor
"""
SUPPORTED = frozenset(_DOCUMENTED.split())
AXES_ARE_INITIALIZERS = "Reduce"
TENSOR = onnx.TensorProto
INSIDE = {TENSOR.FLOAT, TENSOR.FLOAT16, TENSOR.BFLOAT16, TENSOR.INT32, TENSOR.INT64, TENSOR.BOOL}


@pytest.fixture(scope="session")
def made(student: Student) -> tuple[Plan, dict[str, list[Profile]]]:
    request = Request(Path("student"), Path("out"), sizes=SIZES, max_batch=4)
    made = plan(request, student)
    return made, profiles(student, made)


def test_profiles_fit_the_graphs(
    exported: Path, made: tuple[Plan, dict[str, list[Profile]]]
) -> None:
    """Every input has shapes, of its rank and with its fixed axes; equal names, equal lengths."""
    shapes = made[1]
    assert [len(each) for each in shapes.values()] == [1, 2, 2, 2]
    for component, each in shapes.items():
        inputs = onnx.load(exported / "1" / f"{component}.onnx").graph.input
        for profile in each:
            assert set(profile.shapes) == {value.name for value in inputs}
            for bound in range(3):
                sizes: dict[str, int] = {}
                for value in inputs:
                    axes = value.type.tensor_type.shape.dim
                    shape = profile.shapes[value.name][bound]
                    assert len(shape) == len(axes)
                    for axis, length in zip(axes, shape, strict=True):
                        if axis.dim_param:
                            assert sizes.setdefault(axis.dim_param, length) == length
                        else:
                            assert axis.dim_value == length
                most = 1 if component == "vae_encoder" else 4
                assert sizes["batch"] == (1, most, most)[bound]
    latents = [profile.shapes["latents"][2] for profile in shapes["transformer"]]
    assert latents == [(4, 4, 16, 16), (4, 4, 14, 18)]
    assert [profile.size for profile in shapes["transformer"]] == ["64x64", "72x56"]


def test_a_longcat_has_profiles_of_its_own_inputs(longcat: Student) -> None:
    request = Request(Path("student"), Path("out"), sizes=SIZES, max_batch=2)
    shapes = profiles(longcat, plan(request, longcat))
    assert shapes["text_encoder"][0].shapes["attention_mask_0"] == ((1, 512), (2, 512), (2, 512))
    assert set(shapes["transformer"][0].shapes) == {"latents", "sigma", "prompt_embeds"}
    assert shapes["transformer"][1].shapes["prompt_embeds"][0] == (1, 512, 32)


@pytest.mark.parametrize(
    "architecture, precision, component",
    [
        ("sd3", "fp16", "text_encoder"),
        ("sd3", "fp16", "transformer"),
        ("sd3", "fp16", "vae_decoder"),
        ("sd3", "fp16", "vae_encoder"),
        pytest.param("sd3", "bf16", "transformer", marks=pytest.mark.slow),
        pytest.param("sd3", "bf16", "vae_decoder", marks=pytest.mark.slow),
        ("longcat", "fp32", "text_encoder"),
    ],
)
def test_operators_and_types_are_documented(
    request: pytest.FixtureRequest,
    write_graph: WriteGraph,
    architecture: str,
    precision: str,
    component: str,
) -> None:
    student = request.getfixturevalue("student" if architecture == "sd3" else architecture)
    check_operators(onnx.load(write_graph(student, component, precision)))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_other_architectures(
    name: str, tmp_path: Path, write_graph: WriteGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = family(name, tmp_path / name)
    student = load_student(folder)
    for component in (*COMPONENTS, *OPTIONAL):
        check_operators(onnx.load(write_graph(student, component, "bf16")))
    options = ["--to", "tensorrt", "--dry-run", "--max-batch", "4", "--out", str(tmp_path)]
    assert main([str(folder), *options]) == 0
    assert "--maxShapes=latents:4x" in capsys.readouterr().out


def check_operators(model: onnx.ModelProto) -> None:
    """That TensorRT's list has all operators and types."""
    assert not model.functions
    graph = model.graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert {node.op_type for node in graph.node} <= SUPPORTED
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type.startswith(AXES_ARE_INITIALIZERS) and len(node.input) > 1:
            assert node.input[1] in constants
    inferred = onnx.shape_inference.infer_shapes(model).graph
    inside = {value.type.tensor_type.elem_type for value in inferred.value_info}
    assert inside | {tensor.data_type for tensor in graph.initializer} <= INSIDE
    outside = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    assert outside <= {TENSOR.FLOAT, TENSOR.INT64, TENSOR.UINT8}


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
        f"--onnx={component}.onnx" for component in (*COMPONENTS, *OPTIONAL)
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_gpu.Machine:
    packages = (fake_gpu.fake_cupy, fake_gpu.fake_tensorrt)
    return fake_gpu.install(monkeypatch, fake_gpu.Machine(), packages)


def test_engines_are_built_compared_and_stamped(
    student_folder: Path, tmp_path: Path, gpu: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though a picture in a batch is not the same to the bit as alone, as on a GPU."""
    command = [str(student_folder), "--to", "tensorrt", "--out", str(tmp_path / "out")]
    command += ["--sizes", "64x64", "--max-batch", "2", "--version-compatible"]
    command += ["--timing-cache", str(tmp_path / "timing")]
    assert main(command) == 0, capsys.readouterr()
    (model,) = (tmp_path / "out").iterdir()
    manifest = read_manifest(model / "1", full=True)
    assert "tensorrt" in manifest.runtimes and manifest.precision == "fp16"
    assert manifest.engines is not None
    assert manifest.engines["version"] == gpu.version
    assert manifest.engines["compute_capability"] == "9.0"
    assert json.loads((model / "1" / "transformer.plan").read_text())["host_code"]
    assert (tmp_path / "timing").read_bytes() == 4 * b"timing"
    # What is served from it is what was compared; and it knows where it can be.
    assert runtime_for(manifest, "tensorrt", "auto").batches == "close"
    gpu.capability = (8, 0)
    with pytest.raises(StartError, match="the engines were built for NVIDIA Fake"):
        runtime_for(manifest, "tensorrt", "auto")


def test_an_engine_that_cannot_be_built_is_told_with_tensorrts_reason(
    exported: Path, gpu: fake_gpu.Machine, tmp_path: Path
) -> None:
    gpu.context_memory = False
    graph = exported / "1" / "vae_decoder.onnx"
    with pytest.raises(ExportError, match=r"cannot build vae_decoder\.onnx: no implement"):
        build_engine(graph, tmp_path / "plan", [], EngineOptions(), lambda *progress: None)


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
