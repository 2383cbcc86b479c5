"""Weights in another type, and the graphs that come of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from students import SIZES, plan_of, verified

from export.precision import cast, float32
from export.student import Student
from export.tokenizers import write_tokenizers

WriteGraph = Callable[[Student, str, str], Path]
ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def test_cast_is_how_transformers_loads(student: Student, student_folder: Path) -> None:
    """T5's ``wo`` stays float32, in float16 and nowhere else in the network."""
    t5 = student.adapter.pipeline.text_encoder_3
    expected = type(t5).from_pretrained(student_folder / "text_encoder_3", dtype=torch.float16)
    found = cast(t5, torch.float16)
    types = {name: weight.dtype for name, weight in found.state_dict().items()}
    assert types == {name: weight.dtype for name, weight in expected.state_dict().items()}
    assert set(types.values()) == {torch.float16, torch.float32}
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    assert t5.dtype == torch.float32  # the original's


def test_tables_of_frequencies_stay_float32(longcat: Student) -> None:
    model = cast(longcat.adapter.pipeline.text_encoder.model.language_model, torch.bfloat16)
    assert model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.norm.weight.dtype == torch.bfloat16


def test_a_cast_to_the_same_type_shares_the_weights(student: Student) -> None:
    vae = student.adapter.pipeline.vae
    copy = cast(vae, torch.float32)
    assert copy is not vae
    for name, weight in vae.state_dict().items():
        assert copy.state_dict()[name].data_ptr() == weight.data_ptr()


@pytest.mark.parametrize(
    "architecture, precision, components",
    [
        ("sd3", "fp16", ("transformer",)),
        pytest.param(
            *("sd3", "fp16", ("text_encoder", "vae_decoder", "vae_encoder")), marks=pytest.mark.slow
        ),
        pytest.param("sd3", "bf16", ("transformer", "vae_decoder"), marks=pytest.mark.slow),
        pytest.param("longcat", "fp16", ("transformer",), marks=pytest.mark.slow),
        pytest.param("longcat", "bf16", ("text_encoder", "transformer"), marks=pytest.mark.slow),
        pytest.param("longcat", "fp16", ("text_encoder", "vae_decoder"), marks=pytest.mark.slow),
    ],
)
def test_graphs_of_a_precision_are_close_to_torch(
    request: pytest.FixtureRequest,
    write_graph: WriteGraph,
    tmp_path: Path,
    architecture: str,
    precision: str,
    components: tuple[str, ...],
) -> None:
    student = request.getfixturevalue("student" if architecture == "sd3" else architecture)
    for component in components:
        path = write_graph(student, component, precision)
        _check_types(onnx.load(path), ONNX_TYPES[precision])
        (tmp_path / path.name).symlink_to(path)
    write_tokenizers(student.architecture.tokenizers(), tmp_path)
    plan = plan_of(precision, components, SIZES[1:], max_batch=3)
    verification = verified(student, tmp_path, plan)
    assert not verification.failures
    compared = verification.to_json()["components"]
    errors = [each["relative_rms"] for each in compared if each["measure"] == "relative_rms"]
    # The types are what they are said to be: worse than float32 and no worse than they must be.
    assert max(errors, default=1e-3) > 1e-4
    runtimes = {each["runtime"] for each in compared}
    assert ("onnxruntime" in runtimes) == (precision != "bf16")
    assert "openvino-f32" in runtimes


def _check_types(model: onnx.ModelProto, narrow: int) -> None:
    """What passes in and out is not narrow, most weights are, and nothing is float64."""
    graph = model.graph
    outside = {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    assert outside <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8}
    sizes: dict[int, int] = {}
    for tensor in graph.initializer:
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    assert TensorProto.DOUBLE not in sizes
    assert sizes[narrow] > sum(size for dtype, size in sizes.items() if dtype != narrow)
    values = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    for node in graph.node:
        assert node.op_type != "Einsum"
        if node.op_type == "InstanceNormalization":
            assert values[node.input[0]] == TensorProto.FLOAT


def test_a_block_is_in_float32_only_while_it_runs(student: Student) -> None:
    wide = student.adapter.transformer
    narrow = cast(wide, torch.float16)
    rounded = cast(narrow, torch.float32)
    blocks: torch.nn.ModuleList = narrow.transformer_blocks  # type: ignore[assignment]
    seen = []
    for block in blocks:
        block.register_forward_hook(lambda block, *_: seen.append(block.attn.to_q.weight.dtype))
    latents = torch.randn(2, *student.adapter.latent_shape(64, 64))
    condition = student.adapter.encode(["a fox", ""])
    given = latents, torch.tensor([1.0, 0.4]), condition
    with torch.no_grad(), float32(narrow):
        found = student.adapter.velocity(narrow, *given)
        assert narrow.pos_embed.proj.weight.dtype == torch.float32
        assert blocks[0].attn.to_q.weight.dtype == torch.float16
        assert torch.equal(found, student.adapter.velocity(rounded, *given))
        with pytest.raises(RuntimeError):  # of a shape that does not fit
            blocks[0](latents, latents, latents)
        assert blocks[0].attn.to_q.weight.dtype == torch.float16
    assert seen == [torch.float32] * len(blocks)
    assert {weight.dtype for weight in narrow.parameters()} == {torch.float16}


def test_blocks_that_are_not_there_are_passed_over() -> None:
    """The middle of a VAE without attention, as the emoji student's."""
    network = torch.nn.Module()
    linear = torch.nn.Linear(2, 2).half()
    network.blocks = torch.nn.ModuleList([None, linear])  # type: ignore[list-item]
    with torch.no_grad(), float32(network):
        assert linear(torch.ones(1, 2)).dtype == torch.float32
    assert linear.weight.dtype == torch.float16
