"""The GPU's command on a CPU, with a small student; and the real shapes, without contents."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_parts
import pytest
import torch
from pipelines import PROMPTS

from benchmarks.cli import main
from benchmarks.gpu import parts
from benchmarks.gpu.bench import alone
from benchmarks.gpu.parts import Bench
from benchmarks.gpu.shapes import SHAPES, random_component
from distill.adapters.registry import ARCHITECTURES
from distill.distillation import trainer_of
from distill.parallel import Processes
from distill.recipe import Recipe, read_recipe
from distill.trainer import Trainer


@pytest.mark.slow
def test_every_part_on_a_cpu(student: Path, recipe: Path, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--sizes", "64x64", "--batches", "1", "2", "--seconds", "0.01"]
    options += ["--recipe", str(recipe), "--update-batch", "2", "--out", str(tmp_path)]
    assert main(["gpu", str(student), *options]) == 0
    (path,) = tmp_path.glob("gpu-*.json")
    parts = json.loads(path.read_text())["parts"]
    assert parts["limits"]["flops_at_batch_1"]["step 64x64"] > 0
    for name in ("eager", "compile"):
        points = parts[name]["points"]
        assert {point["stage"] for point in points} == {"text", "step", "decode", "picture"}
        assert all(point["p50"] > 0 for point in points), points
    assert [load["clients"] for load in parts["onnxruntime"]["loads"]] == [1, 16]
    assert all(load["images_per_second"] > 0 for load in parts["onnxruntime"]["loads"])
    assert "tensorrt" in parts["tensorrt"]["absent"] or torch.cuda.is_available()
    (attempt,) = parts["update"]["attempts"]
    assert attempt["accumulate"] == 1 and len(attempt["seconds"]) == 3
    points = parts["eager"]["points"] + parts["onnxruntime"]["points"]
    assert all(point["times_floor"] > 0 for point in points), points


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "recipe.toml").write_text(
        f'teacher = "any"\noutput = "{tmp_path}/out"\nprompts = "{tmp_path}/prompts.txt"\n'
        "height = 64\nwidth = 64\nmax_sequence_length = 0\nbatch = 2\n"
    )
    return tmp_path / "recipe.toml"


@pytest.mark.slow
def test_an_update_that_does_not_fit_is_tried_in_more_parts_and_then_with_adapters(
    student: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def updates(self: Bench, recipe: Recipe) -> dict[str, object]:
        if (recipe.lora.rank, recipe.runtime.accumulate) != (64, 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return {"seconds": [1.0]}

    monkeypatch.setattr(Bench, "updates", updates)
    plan = Namespace(device="cpu", sizes=["64x64"], recipe=recipe, update_batch=4)
    found: dict[str, Any] = {}
    Bench(student, plan, tmp_path, found.update).update()
    tried = [(each["lora"], each["accumulate"]) for each in found["attempts"]]
    assert tried == [(0, 1), (0, 2), (0, 4), (64, 1), (64, 2)]
    assert found["attempts"][0]["absent"].startswith("OutOfMemoryError: CUDA out of memory")
    assert found["attempts"][-1]["seconds"] == [1.0]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_costs_no_other(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stages:
        def text(self, batch: int, size: str = "") -> None:
            if batch == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        step = decode = picture = text

    monkeypatch.setattr(Bench, "_torch", lambda self, compiled: Stages())
    plan = Namespace(device="cpu", sizes=["64x64"], batches=[1, 2, 4], seconds=0.0)
    found: dict[str, Any] = {}
    Bench(student, plan, tmp_path, found.update).stages()
    assert [point["batch"] for point in found["points"]] == 4 * [1] + 4 * [2] + 4 * [4]
    for point in found["points"]:
        assert ("p50" in point) == (point["batch"] != 2)
        assert "absent" not in point or "CUDA out of memory" in point["absent"]


def test_an_update_is_one_of_the_run_itself(
    student: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights in the types that the run has them in, which decide what it takes."""
    trainers: list[Trainer] = []
    monkeypatch.setattr(parts, "update_seconds", lambda trainer: trainers.append(trainer) or 1.0)
    plan = Namespace(device="cpu", sizes=["64x64"], recipe=recipe, update_batch=2)
    Bench(student, plan, tmp_path, {}.update).update()
    keys = [f"teacher={student}", "runtime.device=cpu"]
    own = trainer_of(read_recipe(recipe, keys), Processes("cpu"))
    for name in ("student", "fake", "teacher"):
        networks = [getattr(trainer, name) for trainer in (trainers[0], own)]
        measured, real = ({k: p.dtype for k, p in n.named_parameters()} for n in networks)
        assert measured == real


@pytest.mark.parametrize(
    ("run", "seconds", "expected"),
    [
        (gpu_parts.ends, 60, {"found": 1}),
        (gpu_parts.dies, 60, {"found": 1, "cut": "its process ended with -9"}),
        (gpu_parts.hangs, 0, {"absent": "the time was up after 0 s"}),
    ],
)
def test_a_part_that_dies_or_takes_too_long_ends_no_other(
    run: Callable[[Path], None], seconds: float, expected: dict[str, object], tmp_path: Path
) -> None:
    assert alone(run, tmp_path / "part.json", seconds) == expected


def test_what_a_part_had_found_when_it_was_cut(tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text('{"found": 1}')  # as it may at any time
    found = alone(gpu_parts.hangs, tmp_path / "part.json", 0)
    assert found == {"found": 1, "cut": "the time was up after 0 s"}


def test_wants_a_gpu_and_a_student(tmp_path: Path, capsys) -> None:
    out = ["--out", str(tmp_path)]
    if not torch.cuda.is_available():
        assert main(["gpu", "anything", *out]) == 2
        assert "torch sees no GPU here; --device cpu" in capsys.readouterr().err
    assert main(["gpu", "anything", "--device", "cpu", *out]) == 2
    assert "anything is no folder, and no name: StableDiffusion3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("StableDiffusion3Pipeline", 2.03e9),
        ("StableDiffusion35Large", 8.06e9),
        ("LongCatImagePipeline", 6.27e9),
        ("FluxPipeline", 11.9e9),
        ("Flux2KleinPipeline", 3.88e9),
        ("ZImagePipeline", 6.15e9),
        ("QwenImagePipeline", 20.4e9),
    ],
)
def test_transformers_are_as_large_as_the_published_ones(name: str, weights: float) -> None:
    table = SHAPES[name]["components"]["transformer"]
    with torch.device("meta"):
        network = random_component(table, torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(weights, rel=0.005)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fit_their_pipeline(name: str) -> None:
    import diffusers

    shape = SHAPES[name]
    assert shape["pipeline"] in ARCHITECTURES
    assert "recipe" not in shape or Path(shape["recipe"]).is_file()
    with torch.device("meta"):
        parts = {
            key: random_component(table, torch.bfloat16)
            for key, table in shape["components"].items()
        }
    pipeline = getattr(diffusers, shape["pipeline"])(**parts, **dict.fromkeys(shape["absent"]))
    assert pipeline.vae_scale_factor == 8
    ids = pipeline.tokenizer("a fox", return_tensors="pt").input_ids
    vocabulary = pipeline.text_encoder.get_input_embeddings().num_embeddings
    assert int(ids.min()) > 0 and int(ids.max()) < vocabulary
