"""The adapter against diffusers' own pipeline on the same weights."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from pipelines import tiny_sd3

from distill.adapters import Condition, load_adapter
from distill.adapters.sd3 import Sd3Adapter
from distill.errors import DistillError

PROMPTS = ["a fox in the snow", "two owls on a purple background"]


@pytest.fixture(scope="module", params=[False, True], ids=["clip", "clip+t5"])
def adapter(request, tmp_path_factory) -> Sd3Adapter:
    folder = tiny_sd3(tmp_path_factory.mktemp("teacher"), t5=request.param)
    return load_adapter(str(folder), max_sequence_length=16 if request.param else 0)


def test_encode_equals_encode_prompt(adapter: Sd3Adapter) -> None:
    with torch.no_grad():
        expected, _, pooled, _ = adapter.pipeline.encode_prompt(
            PROMPTS,
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=adapter.max_sequence_length,
        )
    condition = adapter.encode(PROMPTS)
    assert torch.equal(condition.tensors["prompt_embeds"], expected)
    assert torch.equal(condition.tensors["pooled"], pooled)
    tokens = 24 + adapter.max_sequence_length
    assert condition.tensors["prompt_embeds"].shape == (2, tokens, 72)
    assert not torch.equal(condition.tensors["pooled"][0], condition.tensors["pooled"][1])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sigmas_are_the_schedulers(adapter: Sd3Adapter, steps: int) -> None:
    before = adapter.pipeline.scheduler.sigmas.clone()
    sigmas = adapter.sigmas(steps, 64, 64)
    assert torch.equal(adapter.pipeline.scheduler.sigmas, before)
    scheduler = type(adapter.pipeline.scheduler).from_config(adapter.pipeline.scheduler.config)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    assert sigmas == scheduler.sigmas.tolist()
    if steps == 4:
        assert sigmas == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_shift_is_per_sigma_and_keeps_the_shape(adapter: Sd3Adapter) -> None:
    sigmas = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    expected = 3 * sigmas / (1 + 2 * sigmas)
    torch.testing.assert_close(adapter.shift(sigmas, 64, 64), expected)


def test_dynamic_shift_is_the_pipelines(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "teacher")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dynamic_shifting": True}))
    adapter = load_adapter(str(folder), max_sequence_length=0)
    pipeline = adapter.pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        "a fox",
        height=64,
        width=32,
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=0,
        output_type="latent",
    )
    assert adapter.sigmas(4, 64, 32) == pipeline.scheduler.sigmas.tolist()


def test_condition_rows(adapter: Sd3Adapter) -> None:
    condition = adapter.encode([*PROMPTS, ""])
    picked = condition[torch.tensor([2, 0])]
    assert len(picked) == 2
    assert torch.equal(picked.tensors["pooled"][1], condition.tensors["pooled"][0])
    both = Condition.cat([picked, condition[2:].expand(4)])
    assert len(both) == 6
    assert torch.equal(both.tensors["prompt_embeds"][5], condition.tensors["prompt_embeds"][2])


def test_latent_shape_refuses_a_size_between_patches(adapter: Sd3Adapter) -> None:
    assert adapter.latent_shape(64, 32) == (4, 16, 8)
    with pytest.raises(DistillError, match="multiples of 8"):
        adapter.latent_shape(64, 60)


def test_a_clip_only_teacher_loads_in_float16(tmp_path: Path) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "t")), dtype=torch.float16)
    assert isinstance(adapter.pipeline, StableDiffusion3Pipeline)
    assert adapter.pipeline.text_encoder_3 is None
    assert {p.dtype for p in adapter.transformer.parameters()} == {torch.float16}
