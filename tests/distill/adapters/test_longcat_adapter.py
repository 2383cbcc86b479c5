"""The adapter against what diffusers' own pipeline hands to the same transformer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline
from pipelines import tiny_longcat

from distill.adapters import Condition, load_adapter
from distill.adapters.longcat import LongCatAdapter
from distill.errors import DistillError

# Quoted text is tokenised letter by letter; the last one is longer than 512 tokens.
PROMPTS = ["a sign that says 'open'", "", "雪中的狐狸", "a very long prompt, " * 40]
SIGMAS = [1.0, 0.75, 0.5, 0.25]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_longcat(tmp_path_factory.mktemp("longcat") / "teacher")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LongCatAdapter:
    adapter = load_adapter(str(folder), dtype)
    assert isinstance(adapter, LongCatAdapter)
    adapter.pipeline.set_progress_bar_config(disable=True)
    return adapter


@pytest.fixture(scope="module")
def adapter(folder: Path) -> LongCatAdapter:
    return load(folder)


@contextmanager
def seen(module: torch.nn.Module) -> Iterator[list[tuple[Any, dict[str, Any], Any]]]:
    """Arguments and output of every call meanwhile."""
    calls: list[tuple[Any, dict[str, Any], Any]] = []
    hook = module.register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def call(pipeline: LongCatImagePipeline, prompts: list[str], **arguments: Any) -> torch.Tensor:
    """The pipeline's own latents, packed."""
    defaults = {
        "height": 64,
        "width": 96,
        "sigmas": SIGMAS,
        "guidance_scale": 1.0,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(3),
    }
    arguments = defaults | arguments
    steps = len(arguments["sigmas"])
    result = pipeline(prompts, num_inference_steps=steps, enable_prompt_rewrite=False, **arguments)
    images: torch.Tensor = result.images
    return images


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("height, width", [(64, 64), (40, 104)])
def test_the_transformer_gets_what_the_pipeline_gives(
    folder: Path, dtype: torch.dtype, height: int, width: int
) -> None:
    adapter = load(folder, dtype)
    pipeline = adapter.pipeline
    condition = adapter.encode(PROMPTS)
    with seen(adapter.transformer) as theirs:
        call(pipeline, PROMPTS, height=height, width=width)
    assert len(theirs) == 4
    sigmas = adapter.sigmas(4, height, width)
    for (_, expected, (output,)), sigma in zip(theirs, sigmas[:-1], strict=True):
        unpack = pipeline._unpack_latents
        x = unpack(expected["hidden_states"], height, width, pipeline.vae_scale_factor)
        with seen(adapter.transformer) as ours, torch.no_grad():
            v = adapter.velocity(adapter.transformer, x, torch.full((4,), sigma), condition)
        ((_, given, _),) = ours
        assert given.keys() == expected.keys() - {"guidance"}
        assert expected["guidance"] is None
        for name in ("hidden_states", "timestep", "encoder_hidden_states"):
            assert given[name].dtype == expected[name].dtype
            assert torch.equal(given[name], expected[name]), name
        for name in ("txt_ids", "img_ids"):
            assert torch.equal(given[name].float(), expected[name]), name
        assert x.shape == (4, *adapter.latent_shape(height, width))
        assert torch.equal(v, unpack(output, height, width, pipeline.vae_scale_factor))


def timesteps_of_904_5(adapter: LongCatAdapter, autocast: bool) -> tuple[float, float]:
    """What reaches the sines, through the pipeline and through the adapter."""
    pipeline = adapter.pipeline
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    with seen(adapter.transformer.time_embed.time_proj) as calls, torch.no_grad():
        call(pipeline, ["a fox"], sigmas=[0.9045])
        assert pipeline.scheduler.timesteps.tolist() == [pytest.approx(904.5, abs=1e-3)]
        x = torch.zeros(1, 16, 16, 24, dtype=torch.float32 if autocast else pipeline.dtype)
        condition = adapter.encode(["a fox"])
        if autocast:
            adapter.transformer.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            adapter.velocity(adapter.transformer, x, torch.tensor([0.9045]), condition)
    theirs, ours = (args[0].item() for args, _, _ in calls)
    return theirs, ours


def test_timesteps_are_rounded_as_the_pipeline_does(folder: Path) -> None:
    assert timesteps_of_904_5(load(folder, torch.bfloat16), autocast=False) == (904.0, 904.0)
    # Rounding sigma instead of the timestep ends elsewhere.
    assert (torch.tensor(0.9045).bfloat16() * 1000).item() == 908.0
    theirs, ours = timesteps_of_904_5(load(folder), autocast=False)
    assert theirs == ours == pytest.approx(904.5, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast_over_float32_weights_rounds_like_a_bfloat16_pipeline(folder: Path) -> None:
    assert timesteps_of_904_5(load(folder, torch.bfloat16), autocast=True) == (904.0, 904.0)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_autocast_comes_close_to_float32(adapter: LongCatAdapter) -> None:
    x = torch.randn(2, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.904, 0.5])  # 904 and 500 are bfloat16 numbers
    condition = adapter.encode(["a fox", "an owl"])
    with torch.no_grad():
        exact = adapter.velocity(adapter.transformer, x, sigma, condition)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = adapter.velocity(adapter.transformer, x, sigma, condition)
    assert (rounded - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("height, width", [(64, 64), (40, 104), (128, 256), (8, 8)])
def test_sigmas_are_the_pipelines(
    adapter: LongCatAdapter, steps: int, height: int, width: int
) -> None:
    sigmas = adapter.sigmas(steps, height, width)
    even = [1 - i / steps for i in range(steps)]
    call(adapter.pipeline, ["a fox"], height=height, width=width, sigmas=even)
    assert sigmas == adapter.pipeline.scheduler.sigmas.tolist()


@pytest.mark.parametrize("side, mu", [(128, 0.5), (512, 1.15)])  # 256 and 4096 tokens
def test_the_shift_grows_with_the_picture(adapter: LongCatAdapter, side: int, mu: float) -> None:
    sigmas = torch.tensor([[0.0, 0.1, 0.3], [0.5, 0.8, 1.0]])
    expected = math.exp(mu) * sigmas / (1 + (math.exp(mu) - 1) * sigmas)
    torch.testing.assert_close(adapter.shift(sigmas, side, side), expected)


def test_the_null_condition_is_the_pipelines_negative_prompt(adapter: LongCatAdapter) -> None:
    with seen(adapter.transformer) as calls:
        call(adapter.pipeline, ["a fox"], sigmas=[1.0], guidance_scale=4.5)
    (_, _, _), (_, negative, _) = calls
    null = adapter.encode([""])
    assert null.tensors.keys() == {"prompt_embeds"}
    assert null.tensors["prompt_embeds"].shape == (1, 512, 32)
    assert torch.equal(null.tensors["prompt_embeds"], negative["encoder_hidden_states"])


def test_encoding_computes_no_more_than_a_token_of_logits(adapter: LongCatAdapter) -> None:
    text_encoder = adapter.pipeline.text_encoder
    with seen(text_encoder) as calls:
        adapter.encode(["a fox", ""])
        adapter.pipeline.encode_prompt(["a fox", ""])
    (_, _, ours), (_, _, theirs) = calls
    assert ours.logits.shape == (2, 1, 259)
    assert theirs.logits.shape[1] > 512  # the hook is gone


def test_rows_of_a_condition_without_pooled_text(adapter: LongCatAdapter) -> None:
    condition = adapter.encode(["a fox", "an owl", ""])
    picked = condition[torch.tensor([2, 0])].to("cpu")
    assert len(picked) == 2
    both = Condition.cat([picked, condition[2:].expand(4)])
    assert len(both) == 6
    assert both.tensors.keys() == {"prompt_embeds"}
    assert torch.equal(both.tensors["prompt_embeds"][5], condition.tensors["prompt_embeds"][2])


@pytest.mark.slow
def test_it_is_exported_for_other_sizes_and_batches(adapter: LongCatAdapter) -> None:
    class Velocity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = adapter.transformer

        def forward(self, x, sigma, prompt_embeds):
            condition = Condition({"prompt_embeds": prompt_embeds})
            return adapter.velocity(self.transformer, x, sigma, condition)

    def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        shape = (batch, *adapter.latent_shape(height, width))
        prompts = ["a fox", "an owl", ""][:batch]
        return (
            torch.randn(shape),
            torch.rand(batch),
            adapter.encode(prompts).tensors["prompt_embeds"],
        )

    batch = torch.export.Dim.DYNAMIC
    shapes = (dict.fromkeys((0, 2, 3), batch), {0: batch}, {0: batch})
    with torch.no_grad():
        program = torch.export.export(Velocity(), inputs(2, 48, 64), dynamic_shapes=shapes)
        for size in ((3, 40, 104), (1, 64, 64)):
            given = inputs(*size)
            torch.testing.assert_close(program.module()(*given), Velocity()(*given))


def test_a_saved_pipeline_comes_back(adapter: LongCatAdapter, tmp_path: Path) -> None:
    adapter.pipeline.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    conditions = adapter.encode(["a fox"]), again.encode(["a fox"])
    embeds = [condition.tensors["prompt_embeds"] for condition in conditions]
    assert torch.equal(*embeds)
    with torch.no_grad():
        first, second = (
            each.velocity(each.transformer, x, torch.ones(1), conditions[0])
            for each in (adapter, again)
        )
    assert torch.equal(first, second)
    theirs = LongCatImagePipeline.from_pretrained(tmp_path / "again", text_processor=None)
    theirs.set_progress_bar_config(disable=True)
    assert torch.equal(call(theirs, ["a fox"]), call(again.pipeline, ["a fox"]))


def test_another_text_length_is_refused(folder: Path) -> None:
    assert load(folder).max_sequence_length == 512
    with pytest.raises(DistillError, match=r"= 256: .* set it to 512"):
        load_adapter(str(folder), max_sequence_length=256)


def test_latent_shape_refuses_a_size_between_patches(adapter: LongCatAdapter) -> None:
    assert adapter.latent_shape(64, 40) == (16, 16, 10)
    with pytest.raises(DistillError, match="multiples of 8"):
        adapter.latent_shape(64, 36)
