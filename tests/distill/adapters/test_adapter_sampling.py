"""What the trainer and the exporter ask of every architecture alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from auraflow import REGISTRY_LINE
from pipelines import (
    tiny_auraflow,
    tiny_flux,
    tiny_klein,
    tiny_longcat,
    tiny_qwen_image,
    tiny_sd3,
    tiny_z_image,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import ModuleList

from distill.adapters import Adapter, Condition, load_adapter
from distill.adapters.registry import ARCHITECTURES
from distill.flow import sample

PROMPTS = ["a fox in the snow", "a sign that says 'two owls'"]
SIGMAS = [1.0, 0.75, 0.5, 0.25]
# FLUX.1's own guidance is an input of the network; this is the one by a second pass.
GUIDED = {
    "z-image": {"guidance_scale": 3.5},  # counted from none, which is 0
    "qwen-image": {"true_cfg_scale": 4.5, "negative_prompt": ["", ""]},
    "flux": {"true_cfg_scale": 4.5, "negative_prompt": ["", ""], "guidance_scale": 3.5},
}
SIZES = [(64, 64), (64, 96), (104, 40)]  # the last has 13 by 5 patches


PADDED = {"qwen-image", "z-image"}
PIPELINES = (
    *("sd3", "sd3.5", "longcat", "auraflow", "flux", "flux-dev"),
    *("klein", "qwen-image", "z-image"),
)


@pytest.fixture(scope="module", params=PIPELINES)
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Adapter, dict[str, Any]]:
    """An adapter and how its pipeline is called for the same picture."""
    folder: Path = tmp_path_factory.mktemp("pipeline") / request.param
    if request.param == "longcat":
        adapter = load_adapter(str(tiny_longcat(folder)))
        arguments: dict[str, Any] = {"enable_prompt_rewrite": False}
    elif request.param == "auraflow":
        with pytest.MonkeyPatch.context() as registry:
            registry.setitem(ARCHITECTURES, "AuraFlowPipeline", REGISTRY_LINE)
            adapter = load_adapter(str(tiny_auraflow(folder)), max_sequence_length=20)
        arguments = {"max_sequence_length": 20}
    elif request.param.startswith("flux"):
        folder = tiny_flux(folder, guidance=request.param == "flux-dev")
        adapter = load_adapter(str(folder), max_sequence_length=20)
        arguments = {"max_sequence_length": 20}
    elif request.param == "klein":
        adapter = load_adapter(str(tiny_klein(folder)), max_sequence_length=60)
        arguments = {"max_sequence_length": 60}
    elif request.param == "z-image":
        adapter = load_adapter(str(tiny_z_image(folder)), max_sequence_length=96)
        arguments = {"max_sequence_length": 96, "guidance_scale": 0.0}
    elif request.param == "qwen-image":
        adapter = load_adapter(str(tiny_qwen_image(folder)), max_sequence_length=350)
        arguments = {"max_sequence_length": 350, "guidance_scale": None, "true_cfg_scale": 1.0}
    else:
        newer = request.param == "sd3.5"
        length = 16 if newer else 0
        tiny_sd3(folder, t5=newer, dual_attention=newer)
        adapter = load_adapter(str(folder), max_sequence_length=length)
        arguments = {"max_sequence_length": length}
    adapter.pipeline.set_progress_bar_config(disable=True)
    return adapter, arguments


@pytest.fixture
def adapter(loaded: tuple[Adapter, dict[str, Any]]) -> Adapter:
    return loaded[0]


@pytest.mark.parametrize("height, width", SIZES)
def test_four_steps_are_the_pipelines_picture(
    loaded: tuple[Adapter, dict[str, Any]], height: int, width: int
) -> None:
    adapter, arguments = loaded
    expected = adapter.pipeline(
        prompt=[*PROMPTS],  # Z-Image writes into the list
        height=height,
        width=width,
        num_inference_steps=4,
        sigmas=SIGMAS,
        **{"guidance_scale": adapter.guidance_scale, **arguments},
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images

    shape = (2, *adapter.latent_shape(height, width))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    latents = sample(
        lambda x, sigma, condition: adapter.velocity(adapter.transformer, x, sigma, condition),
        noise,
        adapter.sigmas(4, height, width),
        adapter.encode(PROMPTS),
    )
    pictures = (adapter.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    assert pictures.shape == (2, 3, height, width)
    # Where the pipeline pads to the longest prompt and we to one length, sums are in other order.
    torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-5 * (adapter.name in PADDED))
    assert pictures.std() > 0.05
    assert not torch.allclose(latents, noise, atol=0.1)


def test_the_pipelines_own_picture(adapter: Adapter) -> None:
    picture = adapter.picture(PROMPTS[0], 4, 64, 96, torch.Generator().manual_seed(3))
    shape = (1, *adapter.latent_shape(64, 96))
    latents = sample(
        lambda x, sigma, condition: adapter.velocity(adapter.transformer, x, sigma, condition),
        torch.randn(shape, generator=torch.Generator().manual_seed(3)),
        adapter.sigmas(4, 64, 96),
        adapter.encode(PROMPTS[:1]),
    )
    (ours,) = adapter.pipeline.image_processor.postprocess(adapter.decode(latents))
    difference = np.asarray(picture, int) - np.asarray(ours, int)
    assert np.abs(difference).max() <= (adapter.name in PADDED)


def test_a_condition_without_contents_has_the_real_ones_shapes(adapter: Adapter) -> None:
    with torch.device("meta"):
        empty = adapter.empty_condition(2).tensors
    real = adapter.encode(PROMPTS).tensors
    assert {n: t.shape for n, t in empty.items()} == {n: t.shape for n, t in real.items()}
    assert {t.device.type for t in empty.values()} == {"meta"}


def test_pictures_are_encoded_as_the_vae_decodes_them(adapter: Adapter) -> None:
    """To its mean, on the scale of the latents that the transformer knows."""
    vae = adapter.pipeline.vae
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = adapter.encode_pictures(pictures)
    assert latents.shape == (2, *adapter.latent_shape(64, 96)) and latents.dtype == torch.float32
    frames = (-1, 3, 1, 64, 96) if adapter.name == "qwen-image" else (-1, 3, 64, 96)
    with torch.no_grad():
        expected = vae.decode(vae.encode(pictures.reshape(frames)).latent_dist.mean).sample
    expected = expected.reshape(pictures.shape)
    torch.testing.assert_close(adapter.decode(latents), expected, rtol=0, atol=1e-5)


def test_guided_steps_are_the_pipelines_picture(
    loaded: tuple[Adapter, dict[str, Any]],
) -> None:
    adapter, arguments = loaded
    expected = adapter.pipeline(
        prompt=[*PROMPTS],  # Z-Image writes into the list
        height=64,
        width=96,
        num_inference_steps=4,
        sigmas=SIGMAS,
        **(arguments | GUIDED.get(adapter.name, {"guidance_scale": 4.5})),
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images

    condition, null = adapter.encode(PROMPTS), adapter.encode(["", ""])

    def guided(x: torch.Tensor, sigma: torch.Tensor, _: Condition) -> torch.Tensor:
        with_prompt, without = (
            adapter.velocity(adapter.transformer, x, sigma, each) for each in (condition, null)
        )
        return adapter.guided(with_prompt, without, 4.5)

    shape = (2, *adapter.latent_shape(64, 96))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    latents = sample(guided, noise, adapter.sigmas(4, 64, 96), condition)
    pictures = (adapter.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pictures, expected, rtol=0, atol=1e-5)


def test_one_batch_of_two_prompts_equals_two_batches(adapter: Adapter) -> None:
    conditions = [adapter.encode([prompt]) for prompt in PROMPTS]
    shape = (2, *adapter.latent_shape(40, 104))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.3])
    with torch.no_grad():
        merged = adapter.velocity(adapter.transformer, x, sigma, Condition.cat(conditions))
        singles = [
            adapter.velocity(adapter.transformer, x[i : i + 1], sigma[i : i + 1], conditions[i])
            for i in range(2)
        ]
        swapped = adapter.velocity(adapter.transformer, x[:1], sigma[:1], conditions[1])
    torch.testing.assert_close(merged, torch.cat(singles), rtol=0, atol=1e-5)
    assert not torch.allclose(swapped, singles[0], rtol=0, atol=3e-5)


def test_prompts_encoded_together_equal_single_ones(adapter: Adapter) -> None:
    together = adapter.encode([*PROMPTS, ""])
    singles = Condition.cat([adapter.encode([prompt]) for prompt in [*PROMPTS, ""]])
    torch.testing.assert_close(together.tensors, singles.tensors, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("autocast", [False, True])
def test_velocity_asks_the_device_for_no_value(adapter: Adapter, autocast: bool) -> None:
    condition = adapter.encode(PROMPTS)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),  # its tensors have no values
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        x = torch.randn(2, *adapter.latent_shape(64, 96))
        sigma = torch.rand(2)
        assert adapter.velocity(adapter.transformer, x, sigma, condition).shape == x.shape
        with pytest.raises(DataDependentOutputException):
            sigma[0].item()


def test_the_teacher_trains_with_checkpointing(adapter: Adapter) -> None:
    shape = (2, *adapter.latent_shape(64, 64))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    condition = adapter.encode(PROMPTS)
    transformer = adapter.pipeline.transformer
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        blocks: list[torch.nn.Module] = []
        first = next(each for each in transformer.children() if isinstance(each, ModuleList))[0]
        hook = first.register_forward_pre_hook(lambda block, _, blocks=blocks: blocks.append(block))
        velocity = adapter.velocity(transformer, x, torch.tensor([0.9, 0.2]), condition)
        loss, weights = velocity.square().mean(), [*transformer.parameters()]
        # Of the last block the text is not used any more.
        gradients.append(torch.autograd.grad(loss, weights, materialize_grads=True))
        hook.remove()
        assert len(blocks) == 1 + checkpointing  # the second time in the backward pass
    transformer.disable_gradient_checkpointing()
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
