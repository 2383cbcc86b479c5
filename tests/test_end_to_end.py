"""The whole path: teacher, distillation, export, Triton, gateway, OpenAI's client, one picture."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from conftest import Server
from diffusers import StableDiffusion3Pipeline
from openai import OpenAI
from PIL import Image
from pipelines import PROMPTS


def test_from_teacher_to_picture(student: Path, server: Server) -> None:
    """The server of the tests serves what cdm-export made of what cdm-distill made."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 7})
    again = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 7})
    other = client.images.generate(prompt=PROMPTS[0], extra_body={"seed": 8})
    assert answer.data and again.data and other.data
    assert answer.data[0].b64_json == again.data[0].b64_json != other.data[0].b64_json
    served = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))))

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        student, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    reference = pipeline(
        PROMPTS[0],
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(7),
        height=64,
        width=64,
    ).images[0]
    difference = served.astype(float) - np.asarray(reference, dtype=float)
    psnr = 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-9))
    # bfloat16 arithmetic, where the CPU has it, costs a few grey levels; another picture, 10 dB.
    assert psnr > 35
