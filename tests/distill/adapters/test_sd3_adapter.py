"""The adapter against diffusers' own pipeline on the same weights."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from pipelines import tiny_sd3

from distill.adapters import Condition, Sd3Adapter, load_adapter
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
    assert torch.equal(condition.prompt_embeds, expected)
    assert torch.equal(condition.pooled, pooled)
    tokens = 24 + adapter.max_sequence_length
    assert condition.prompt_embeds.shape == (2, tokens, 72)
    assert not torch.equal(condition.pooled[0], condition.pooled[1])


def test_four_steps_equal_the_pipeline(adapter: Sd3Adapter) -> None:
    pipeline = adapter.pipeline
    pipeline.set_progress_bar_config(disable=True)
    shape = (2, *adapter.latent_shape(64, 64))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=4,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1.0,
        max_sequence_length=adapter.max_sequence_length,
        output_type="latent",
    ).images
    picture = pipeline(
        PROMPTS,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=1.0,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        max_sequence_length=adapter.max_sequence_length,
        output_type="pt",
    ).images

    sigmas = adapter.sigmas(4, 64, 64)
    condition = adapter.encode(PROMPTS)
    x = noise
    with torch.no_grad():
        for sigma, next_sigma in itertools.pairwise(sigmas):
            v = adapter.velocity(adapter.transformer, x, torch.full((2,), sigma), condition)
            x = x + (next_sigma - sigma) * v
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    decoded = (adapter.decode(x) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, picture, rtol=0, atol=1e-6)
    assert x.std() > 0.1 and not torch.allclose(x, noise, atol=0.1)


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
    assert torch.equal(picked.pooled[1], condition.pooled[0])
    both = Condition.cat([picked, condition[2:].expand(4)])
    assert len(both) == 6
    assert torch.equal(both.prompt_embeds[5], condition.prompt_embeds[2])


def test_latent_shape_refuses_a_size_between_patches(adapter: Sd3Adapter) -> None:
    assert adapter.latent_shape(64, 32) == (4, 16, 8)
    with pytest.raises(DistillError, match="multiples of 8"):
        adapter.latent_shape(64, 60)


def test_a_clip_only_teacher_loads_in_float16(tmp_path: Path) -> None:
    adapter = load_adapter(str(tiny_sd3(tmp_path / "t")), dtype=torch.float16)
    assert isinstance(adapter.pipeline, StableDiffusion3Pipeline)
    assert adapter.pipeline.text_encoder_3 is None
    assert {p.dtype for p in adapter.transformer.parameters()} == {torch.float16}


def test_unknown_teachers_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"no readable model_index\.json"):
        load_adapter(str(tmp_path))
    with pytest.raises(DistillError, match=r"is no folder here, and is no model the hub gives"):
        load_adapter(str(tmp_path / "none"))
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(DistillError, match="not a flow-matching pipeline") as caught:
        load_adapter(str(tmp_path))
    assert "StableDiffusion3Pipeline" in str(caught.value)
    index.write_text("[]")
    with pytest.raises(DistillError, match="must hold a JSON object"):
        load_adapter(str(tmp_path))
    index.write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    with pytest.raises(DistillError, match="cannot be loaded") as caught:
        load_adapter(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_resamples_the_grid_is_refused(tmp_path: Path) -> None:
    folder = tiny_sd3(tmp_path / "teacher")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_karras_sigmas": True}))
    with pytest.raises(DistillError, match="use_karras_sigmas"):
        load_adapter(str(folder))
