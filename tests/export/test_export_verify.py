import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import quantize_dynamic
from pipelines import tiny_sd3
from rich.console import Console
from students import SIZES, plan_of, verified

from cdm_serve.engine.manifest import COMPONENTS
from cdm_serve.engine.memory import GIB, Growth
from cdm_serve.engine.runtimes.onnxruntime import OnnxGraph, OnnxRuntime
from export.compare import Comparison, Invariance, Picture, verification_table
from export.errors import VerificationError
from export.exporter import finish
from export.manifest import manifest
from export.reference import reference
from export.repository import staged
from export.student import Student, load_student
from export.verify import Candidate, candidates

PLAN = plan_of()
SMALL = plan_of(sizes=SIZES[1:])  # enough to find a wrong graph by


def test_every_output_is_compared_at_every_batch_and_size_in_every_runtime(
    exported: Path, student: Student
) -> None:
    verification = verified(student, exported / "1", PLAN)
    names = [each.name for each in candidates("fp32")]
    assert names[:2] == ["onnxruntime", "openvino-f32"]
    assert not verification.failures
    assert verification.served == names[1:]
    compared = [c for c in verification.checks if isinstance(c, Comparison)]
    batches = (1, 3, 4)
    assert {(c.runtime, c.output, c.batch, c.size) for c in compared} == {
        *((r, o, b, None) for r in names for o in ("prompt_embeds", "pooled") for b in batches),
        *(
            (r, o, b, str(s))
            for r in names
            for o in ("velocity", "image")
            for b in batches
            for s in SIZES
        ),
        # Pictures that come in are encoded one by one.
        *((r, "latents", 1, str(s)) for r in names for s in SIZES),
    }
    alone = {(c.runtime, c.component) for c in verification.checks if isinstance(c, Invariance)}
    assert alone == {(r, c) for r in names[1:] for c in COMPONENTS}
    pictures = [c for c in verification.checks if isinstance(c, Picture)]
    assert {(p.runtime, p.size) for p in pictures} == {(r, str(s)) for r in names for s in SIZES}


def test_a_batch_that_memory_is_not_there_for_is_compared_smaller(
    exported: Path, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a graph that grows by 1 GiB with each sample."""
    monkeypatch.setattr(Growth, "need", lambda self, batch: batch * GIB)
    monkeypatch.setattr("cdm_serve.engine.memory.available", lambda: 2.5 * GIB)
    found = verified(student, exported / "1", SMALL)
    assert not found.failures and "openvino-f32" in found.served
    assert {c.batch for c in found.checks if isinstance(c, Comparison)} == {1, 2}
    assert {c.batch for c in found.checks if isinstance(c, Invariance)} == {2}
    assert (
        f"vae_decoder at {SIZES[1]} in openvino-f32 is compared in batches of up to 2: of 4, it "
        "would take 4.0 GiB of memory, and 2.5 are available" in found.smaller
    )


@pytest.fixture
def impostor(tmp_path: Path) -> Student:
    """A student of the same shapes and other weights."""
    impostor = load_student(tiny_sd3(tmp_path / "impostor", seed=1, t5=True))
    impostor.adapter.max_sequence_length = 16
    return impostor


def test_another_students_weights_are_noticed_everywhere(exported: Path, impostor: Student) -> None:
    verification = verified(impostor, exported / "1", SMALL)
    # The graphs give the same bits alone and in a batch, whoever's they are.
    wrong = [c for c in verification.checks if not isinstance(c, Invariance)]
    assert not any(check.passed for check in wrong)
    assert verification.served == []
    assert verification_table(verification.checks).row_count > len(wrong)


def test_a_failed_verification_replaces_nothing(
    exported: Path, impostor: Student, tmp_path: Path
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(exported, repository / "tiny")
    with (
        pytest.raises(VerificationError, match="nothing was replaced; the first: text_encoder"),
        staged(repository, "tiny") as folder,
    ):
        shutil.copytree(exported / "1", folder / "1")
        contents = manifest(impostor, SMALL, folder / "1")
        finish(reference(impostor, SMALL), contents, SMALL, folder, Console(quiet=True))
    assert [path.name for path in repository.iterdir()] == ["tiny"]
    for path in exported.rglob("*.*"):
        copy = repository / "tiny" / path.relative_to(exported)
        assert copy.read_bytes() == path.read_bytes()


def test_a_graph_whose_samples_see_each_other_is_refused(
    exported: Path, student: Student, tmp_path: Path
) -> None:
    """A share of the batch's mean, too small for any tolerance, is not too small for this."""
    folder = Path(shutil.copytree(exported / "1", tmp_path / "1"))
    model = onnx.load(folder / "transformer.onnx")
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["own" if name == output.name else name for name in node.output]
    axis = onnx.numpy_helper.from_array(np.array([0]), "zeroth")
    share = onnx.numpy_helper.from_array(np.array(1e-7, dtype=np.float32), "share")
    model.graph.initializer.extend([axis, share])
    model.graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["own", "zeroth"], ["shared_mean"]),
            onnx.helper.make_node("Mul", ["shared_mean", "share"], ["leak"]),
            onnx.helper.make_node("Add", ["own", "leak"], [output.name]),
        ]
    )
    onnx.save(model, folder / "transformer.onnx")
    verification = verified(student, folder, SMALL)
    failures = verification.failures
    assert {(type(f), f.runtime) for f in failures} == {(Invariance, "openvino-f32")}
    assert "transformer in openvino-f32 at batch 4" in str(failures[0])
    assert "openvino-f32" not in verification.served


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the quantizer's own
def test_dynamic_int8_is_refused_for_serving(
    exported: Path, student: Student, tmp_path: Path
) -> None:
    """One scale for the activations of a whole batch: one user's picture changes another's."""
    quantize_dynamic(exported / "1" / "transformer.onnx", tmp_path / "int8.onnx")

    class Int8(OnnxRuntime):
        def load(self, path: Path) -> OnnxGraph:
            return super().load(tmp_path / "int8.onnx")

    int8 = Candidate("onnxruntime-int8", Int8("cpu"), "bf16", serves=True, required=False)
    plan = plan_of(components=("transformer",))
    verification = verified(student, exported / "1", plan, (int8,))
    assert not verification.failures
    assert isinstance(verification.refused["onnxruntime-int8"], Invariance)
    assert "onnxruntime-int8" not in verification.served
    assert "openvino-f32" in verification.served
