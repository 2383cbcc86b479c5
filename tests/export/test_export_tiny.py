"""A tiny decoder beside the student's own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from pipelines import tiny_decoder, tiny_klein, tiny_longcat_edit
from students import plan_of, verified

from cdm_serve.engine.manifest import parse_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from export.cli import main
from export.graphs import graph, write_onnx
from export.manifest import manifest
from export.student import Student, load_student


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("decoder") / "taesd")


@pytest.fixture(scope="module")
def student(student_folder: Path, decoder: Path) -> Student:
    return load_student(student_folder, decoder=decoder)


@pytest.fixture(scope="module")
def folder(student: Student, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's export with a tiny decoder put beside it."""
    assert student.tiny is not None
    plan = plan_of()
    folder = Path(shutil.copytree(exported / "1", tmp_path_factory.mktemp("tiny") / "1"))
    made = graph("tiny_decoder", student.architecture, plan.precision, student.tiny)
    write_onnx(made, folder / "tiny_decoder.onnx")
    return folder


@pytest.mark.slow
def test_it_is_compared_like_the_others(student: Student, folder: Path) -> None:
    plan = plan_of(components=(*plan_of().components, "tiny_decoder"))
    verification = verified(student, folder, plan)
    assert not verification.failures and not verification.refused
    entry = verification.to_json()
    compared = {(each["component"], each["batch"]) for each in entry["components"]}
    assert {("tiny_decoder", batch) for batch in (1, 3, 4)} <= compared
    assert "tiny_decoder" in {each["component"] for each in entry["batch_invariance"]}
    assert 0 < entry["tiny_psnr_db"] < 30  # both have random weights


def test_pixels_are_those_of_a_pipeline_with_it_as_vae(
    student: Student, decoder: Path, folder: Path
) -> None:
    """As its makers say to use it: latents are given to it as the transformer has them."""
    pipe = student.adapter.with_vae(AutoencoderTiny.from_pretrained(decoder)).pipeline
    latents = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    options = {"prompt": "a fox", "num_inference_steps": 1, "height": 64, "width": 64}
    options |= {"guidance_scale": 1.0, "max_sequence_length": 16, "num_images_per_prompt": 2}
    before = pipe(latents=latents, output_type="latent", **options).images
    expected = pipe(latents=latents, output_type="np", **options).images
    contents = manifest(student, plan_of(components=("tiny_decoder",)), folder)
    pipeline = Pipeline(parse_manifest(contents, folder), open_runtime("openvino", "f32"))
    pixels = pipeline.decode(before.numpy(), "tiny")
    assert np.abs(pixels / 255 - expected).max() < 1.1 / 255


@pytest.mark.parametrize(
    ("channels", "blocks", "said"),
    [
        (16, (1, 1, 0), "for latents of 16 channels with 4 pixels a side of each, and the student"),
        (4, (1, 1, 1, 0), "4 channels with 8 pixels a side of each, and the student's are of 4"),
    ],
)
def test_one_for_other_latents_is_refused(
    student_folder: Path, tmp_path: Path, capsys, channels: int, blocks: tuple[int, ...], said: str
) -> None:
    other = tiny_decoder(tmp_path / "taesd", channels, blocks)
    options = ["--to", "onnx", "--out", str(tmp_path / "out"), "--decoder", str(other)]
    assert main([str(student_folder), *options]) == 2
    assert said in capsys.readouterr().err


def test_one_for_a_model_that_edits_and_takes_no_tiny_sizes(tmp_path: Path, capsys) -> None:
    student = tiny_longcat_edit(tmp_path / "student")
    other = tiny_decoder(tmp_path / "taesd", latent_channels=7)
    options = ["--to", "onnx", "--out", str(tmp_path / "out"), "--decoder", str(other)]
    assert main([str(student), *options]) == 2
    assert "it is for latents of 7 channels" in capsys.readouterr().err


def test_what_is_none_is_refused_before_anything_is_loaded(
    student_folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.exporter.load_student", lambda *_: pytest.fail("loaded"))
    options = [str(student_folder), "--to", "onnx", "--out", str(tmp_path / "out")]
    for more, said in (
        (
            ["--decoder", str(student_folder / "vae")],
            "is of class AutoencoderKL; expected an Autoencoder",
        ),
        (["--decoder", str(student_folder)], "no network of diffusers: it has no readable config"),
        (["--decoder", "./nowhere/at/all"], "nowhere/at/all does not exist; expected the folder"),
        (["--components", "tiny_decoder"], "tiny_decoder is what --decoder gives; add it"),
    ):
        assert main([*options, *more]) == 2
        assert said in capsys.readouterr().err


def test_damaged_weights_are_one_line(
    student_folder: Path, decoder: Path, tmp_path: Path, capsys
) -> None:
    damaged = Path(shutil.copytree(decoder, tmp_path / "damaged"))
    path = damaged / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    options = ["--to", "onnx", "--out", str(tmp_path / "out"), "--decoder", str(damaged)]
    assert main([str(student_folder), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{damaged}/diffusion_pytorch_model.safetensors is a part of" in line


def test_latents_that_need_their_own_autoencoder_are_refused(
    decoder: Path, tmp_path: Path, capsys
) -> None:
    klein = tiny_klein(tmp_path / "klein")
    options = ["--to", "onnx", "--out", str(tmp_path / "out"), "--decoder", str(decoder)]
    assert main([str(klein), *options]) == 2
    assert "--decoder: latents of flux2-klein pass through" in capsys.readouterr().err
