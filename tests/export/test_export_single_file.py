"""Checkpoints in one file, as SD3 and FLUX.1 are published: the same network, or one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusion3Pipeline
from pipelines import tiny_flux, tiny_longcat, tiny_sd3, tiny_z_image
from safetensors.torch import load_file, save_file
from single_files import TRANSFORMER, State, original, original_vae, save, text_encoder

from export.cli import main
from export.errors import ExportError
from export.layout import check_student
from export.student import Student, load_student


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the file is not: all of its own weights are others."""
    place = tmp_path_factory.mktemp("single-file") / "base"
    return tiny_sd3(place, seed=1, t5=True, dual_attention=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the file is made of."""
    place = tmp_path_factory.mktemp("single-file") / "other"
    return tiny_sd3(place, seed=2, t5=True, dual_attention=True)


def state(student: Student, component: str) -> State:
    return dict(getattr(student.adapter.pipeline, component).state_dict())


def same(found: State, expected: State) -> bool:
    return all(torch.equal(found[key], weight) for key, weight in expected.items())


def test_a_transformer_alone(base: Path, other: Path, tmp_path: Path) -> None:
    weights, file = original(other), tmp_path / "my.safetensors"
    expected = load_file(other / TRANSFORMER)
    # Without a prefix, with one, and under diffusers' names.
    for parts in ({"bare": weights}, {"transformer": weights}, {"bare": expected}):
        student = load_student(save(file, **parts), base=base)
        assert same(state(student, "transformer"), expected)
        assert same(state(student, "text_encoder"), text_encoder(base, "text_encoder"))
        assert student.name == "my"
    assert student.sha256 != load_student(base).sha256


def test_all_in_one_file(base: Path, other: Path, tmp_path: Path) -> None:
    """What is in it is taken from it; CLIP-L's pooled text is not projected."""
    clip = text_encoder(other, "text_encoder")
    clip["text_projection.weight"] = torch.eye(32)
    save_file(clip, other / "text_encoder/model.safetensors", {"format": "pt"})
    file = save(
        tmp_path / "all.safetensors",
        transformer=original(other),
        vae=original_vae(other),
        clip_l={k: w for k, w in clip.items() if k != "text_projection.weight"},
        clip_g=text_encoder(other, "text_encoder_2"),
        t5xxl=text_encoder(other, "text_encoder_3"),
    )
    student = load_student(file, base=base, dtype=torch.float32)
    expected = load_student(other)
    for component in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert same(state(student, component), state(expected, component)), component
    # As diffusers itself reads it; of two CLIPs of one width it takes the first for both.
    theirs = StableDiffusion3Pipeline.from_single_file(str(file), config=str(base))
    for component in ("transformer", "vae", "text_encoder"):
        assert same(getattr(theirs, component).state_dict(), state(expected, component)), component


def test_z_image(tmp_path: Path) -> None:
    base, other = tiny_z_image(tmp_path / "base", seed=1), tiny_z_image(tmp_path / "other", seed=2)
    weights = original(other) | {"norm_final.weight": torch.ones(32)}  # published, and not used
    student = load_student(save(tmp_path / "z.safetensors", bare=weights), base=base)
    assert same(state(student, "transformer"), load_file(other / TRANSFORMER))


@pytest.mark.slow
def test_flux(tmp_path: Path) -> None:
    """In the width of the published ones, which diffusers relies on: a gigabyte."""
    base = tiny_flux(tmp_path / "base")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = FluxTransformer2DModel.from_config(
            FluxTransformer2DModel.load_config(base / "transformer") | {"num_attention_heads": 192}
        )
    finally:
        torch.set_default_dtype(before)
    transformer.save_pretrained(base / "transformer")
    file = save(tmp_path / "flux1-schnell.safetensors", bare=original(base))
    expected = load_file(base / TRANSFORMER)
    (base / TRANSFORMER).unlink()
    student = load_student(file, base=base, dtype=torch.bfloat16)
    assert same(state(student, "transformer"), expected)


def without(file: Path, *keys: str) -> None:
    save_file({key: each for key, each in load_file(file).items() if key not in keys}, file)


def more(file: Path, *keys: str) -> None:
    save_file(load_file(file) | {key: torch.ones(1) for key in keys}, file)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-10]), "its end is missing"),
    "a pointer": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "quantized": (
        lambda f: more(f, "scaled_fp8"),
        "is quantized .*take the .safetensors file in bf16 or fp16",
    ),
    "another formulation": (
        lambda f: more(f, "model.diffusion_model.input_blocks.0.0.weight"),
        "predicts noise",
    ),
    "a weight is missing": (
        lambda f: without(f, "final_layer.linear.bias"),
        "holds no SD3Transformer2DModel .*final_layer.linear.bias",
    ),
    "another VAE": (lambda f: save(f, vae={"encoder.conv_in.weight": torch.ones(8)}), "holds no"),
    "another base": (
        lambda f: save(f, bare=original(tiny_sd3(f.parent / "one"))),
        "holds no SD3Transformer2DModel .*norm1.linear.weight expected shape",
    ),
    "no qk-norm": (
        lambda f: without(f, *(key for key in load_file(f) if ".ln_" in key)),
        "some of its weights are missing",
    ),
    "nothing": (lambda f: save(f, bare={"a.weight": torch.ones(1)}), "is it of another base"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(base: Path, other: Path, tmp_path: Path, name: str) -> None:
    file = save(tmp_path / "my.safetensors", bare=original(other))
    damage, message = BAD[name]
    damage(file)
    with pytest.raises(ExportError, match=message) as caught:
        check_student(file, True)
        load_student(file, base=base)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_weights_without_a_place(base: Path, other: Path, tmp_path: Path) -> None:
    """The other way round: blocks with more than the base says."""
    plain = Path(shutil.copytree(base, tmp_path / "plain"))
    config = plain / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"qk_norm": None}))
    file = save(tmp_path / "my.safetensors", bare=original(other))
    with pytest.raises(ExportError, match=r"norm\S+ \(the first of \d+\) has no place") as caught:
        load_student(file, base=plain)
    assert str(config) in str(caught.value)
    longcat = tiny_longcat(tmp_path / "longcat")
    with pytest.raises(ExportError, match="reads no LongCatImageTransformer2DModel from a single"):
        load_student(file, base=longcat)


def test_without_a_base(other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "my.safetensors", bare=original(other))
    for name in ("my.ckpt", "my.gguf", "my.pdf"):
        (tmp_path / name).write_bytes(b"")
    for name, message in [
        ("my.safetensors", "is a single-file checkpoint without a pipeline; give .* by --base"),
        ("my.ckpt", "is a pickle, which is not loaded; convert it"),
        ("my.gguf", "is quantized, as GGUF is; take the .safetensors file"),
        ("my.pdf", "is no safetensors file"),
        ("none.safetensors", "does not exist"),
    ]:
        student = tmp_path / name
        with pytest.raises(ExportError, match=message):
            check_student(student, False)
        assert main([str(student), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_command(base: Path, other: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "my.safetensors", bare=original(other))
    options = ["--to", "onnx", "--max-batch", "2", "--out", str(tmp_path / "out")]
    assert main([str(file), "--base", str(base), *options]) == 0
    assert (tmp_path / "out" / "my" / "config.pbtxt").exists()
