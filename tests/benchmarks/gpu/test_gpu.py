"""The GPU's command on a CPU, with a small student; and the real shapes, without contents."""

import json
from pathlib import Path

import pytest
import torch
from pipelines import PROMPTS

from benchmarks.cli import main
from benchmarks.gpu.shapes import SHAPES, random_component
from distill.adapters.registry import ARCHITECTURES


@pytest.mark.slow
def test_every_part_on_a_cpu(student: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'teacher = "any"\noutput = "{tmp_path}/out"\nprompts = "{tmp_path}/prompts.txt"\n'
        "height = 64\nwidth = 64\nmax_sequence_length = 0\nbatch = 2\n"
    )
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
    assert name in ARCHITECTURES
    assert "recipe" not in shape or Path(shape["recipe"]).is_file()
    with torch.device("meta"):
        parts = {
            key: random_component(table, torch.bfloat16)
            for key, table in shape["components"].items()
        }
    pipeline = getattr(diffusers, name)(**parts, **dict.fromkeys(shape["absent"]))
    assert pipeline.vae_scale_factor == 8
    ids = pipeline.tokenizer("a fox", return_tensors="pt").input_ids
    vocabulary = pipeline.text_encoder.get_input_embeddings().num_embeddings
    assert int(ids.min()) > 0 and int(ids.max()) < vocabulary
