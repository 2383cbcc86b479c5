"""LongCat in the engine: masks, quotation, no pooled text; and through the real Triton."""

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LongCatImagePipeline
from openai import OpenAI
from PIL import Image
from pipelines import tiny_longcat
from students import write_card

from cdm_serve.engine.manifest import read_manifest
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from cdm_serve.engine.tokenizers import PromptTokenizer

# Export compares the same pictures already; here they go through what serves.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PROMPTS = ["a fox in the snow", 'a sign that says "open"', "", "it's an owl"]


@pytest.fixture(scope="module")
def longcat(tmp_path_factory):
    folder = tiny_longcat(tmp_path_factory.mktemp("longcat") / "longcat")
    write_card(
        folder, name="longcat", architecture="longcat", max_sequence_length=512, height=56, width=72
    )
    return folder


@pytest.fixture(scope="module")
def exported(longcat, tmp_path_factory):
    repository = tmp_path_factory.mktemp("export") / "model_repository"
    command = [sys.executable, "-m", "export.cli", longcat, "--to", "onnx", "--out", repository]
    subprocess.run([*command, "--max-batch", "4"], check=True, cwd=ROOT)
    return repository


@pytest.fixture(scope="module")
def theirs(longcat):
    pipeline = LongCatImagePipeline.from_pretrained(
        longcat, text_processor=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)

    def picture(prompt, seed):
        image = pipeline(
            prompt,
            height=56,
            width=72,
            num_inference_steps=4,
            sigmas=[1.0, 0.75, 0.5, 0.25],
            guidance_scale=1.0,
            enable_prompt_rewrite=False,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        return np.asarray(image, dtype=float)

    return picture


def psnr(picture, expected):
    return 10 * np.log10(255**2 / max(np.square(picture - expected).mean(), 1e-9))


def test_the_engine_draws_what_diffusers_draws(exported, theirs):
    """An odd number of rows of tokens, all prompts in one batch."""
    manifest = read_manifest(exported / "longcat" / "1")
    pipeline, size = Pipeline(manifest, open_runtime("openvino", "f32")), manifest.default_size
    sigmas = np.array(manifest.sigmas[size][manifest.default_steps], np.float32)
    noise = pipeline.stack([pipeline.noise(seed, size) for seed in range(len(PROMPTS))])
    pictures = pipeline.decode(pipeline.denoise(noise, sigmas, pipeline.encode(PROMPTS)))
    for seed, prompt in enumerate(PROMPTS):
        assert psnr(pictures[seed], theirs(prompt, seed)) > 60


def test_counts_leave_out_the_padding(exported):
    manifest = read_manifest(exported / "longcat" / "1")
    tokens = PromptTokenizer(manifest.tokenizers)(PROMPTS)
    assert tokens.ids[0].shape == tokens.masks[0].shape == (4, 512)
    assert tokens.counts == tuple(map(len, PROMPTS))  # the tiny one's tokens are bytes


def test_through_triton(exported, theirs, start):
    server = start("--model-repository", str(exported))
    server.wait_ready()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(prompt=PROMPTS[1], extra_body={"seed": 7})
    assert answer.data
    served = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))))
    assert server.interrupt() == 0
    # bfloat16 arithmetic, where the CPU has it, costs a few levels; another picture, 10 dB.
    assert psnr(served.astype(float), theirs(PROMPTS[1], 7)) > 35
