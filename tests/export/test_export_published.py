"""Published checkpoints, tiny: pictures are those that diffusers makes as their cards call it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from pipelines import PROMPTS, tiny_sd3

from cdm_serve.engine.manifest import COMPONENTS, Manifest, parse_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes.openvino import OpenVino
from export.cli import main
from export.compare import psnr_db
from export.manifest import manifest
from export.plan import plan
from export.request import Request
from export.student import load_student

TURBO = "stabilityai/stable-diffusion-3.5-large-turbo"
CDM = "byliutao/stable-diffusion-3-medium-turbo"
# As the model cards call the pipeline.
CALLS: dict[str, dict[str, Any]] = {
    TURBO: {"num_inference_steps": 4, "guidance_scale": 0.0},
    CDM: {"sigmas": [1.0, 0.75, 0.5, 0.25], "num_inference_steps": 4, "guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of SD3.5-Large's kind: rms-norms, one attention a block, three text encoders."""
    return tiny_sd3(tmp_path_factory.mktemp("published") / TURBO.split("/")[1], t5=True)


@pytest.fixture(scope="module")
def graphs(turbo: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of as many tokens as its card has; the decoder is that of the session's export."""
    out = tmp_path_factory.mktemp("published-export")
    options = ["--to", "onnx", "--max-batch", "1", "--verify", "none", "--out", str(out)]
    options += ["--components", "text_encoder,transformer"]
    assert main([str(turbo), *options]) == 0
    folder = out / turbo.name / "1"
    (folder / "vae_decoder.onnx").symlink_to(exported / "1" / "vae_decoder.onnx")
    return folder


def described(folder: Path, graphs: Path) -> Manifest:
    """The exported graphs with what ``cdm-export`` says of a student of these very weights."""
    student = load_student(folder)
    made = plan(Request(folder, graphs, max_batch=1, components=COMPONENTS), student)
    return parse_manifest(manifest(student, made, graphs), graphs)


def theirs(folder: Path, name: str) -> Any:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    call = CALLS[name] | {"generator": generator, "output_type": "np"}
    (image,) = pipeline(PROMPTS[0], **call).images
    return (image * 255).round().astype(np.uint8)


@pytest.mark.slow
def test_each_is_sampled_as_its_card_says(turbo: Path, graphs: Path, tmp_path: Path) -> None:
    folders = {TURBO: turbo, CDM: tmp_path / f"models--{CDM.replace('/', '--')}/snapshots/0123"}
    shutil.copytree(turbo, folders[CDM])
    found = {}
    for name, folder in folders.items():
        ours = described(folder, graphs)
        assert (ours.name, ours.default_steps) == (name.split("/")[1], 4)
        engine = Pipeline(ours, OpenVino("f32"))
        sigmas = np.array(ours.sigmas["64x64"][4], np.float32)
        latents = engine.denoise(engine.noise(3, "64x64")[None], sigmas, engine.encode(PROMPTS[:1]))
        found[name] = engine.decode(latents)[0]
        assert psnr_db(found[name], theirs(folder, name)) > 60
    # The wrong one of the two contracts is another picture.
    assert psnr_db(found[TURBO], theirs(turbo, CDM)) < 55
