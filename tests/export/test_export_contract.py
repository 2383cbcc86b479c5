"""Which sigmas a student is sampled with, and that these are diffusers' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Once
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from pipelines import PROMPTS, tiny_flux, tiny_qwen_image, tiny_sd3
from students import CARD, family

from distill.adapters import Adapter, load_adapter
from distill.flow import sample
from distill.stock import write_stock
from export.contract import Contract, contract
from export.errors import ExportError
from export.request import Sampling, parse_sampling

EVEN = [1.0, 0.9, 0.75, 0.5, 0.0]
DEFAULT = [1.0, 0.8586, 0.602, 0.0089, 0.0]  # of shift 3, as diffusers 0.42 makes it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("contract") / "published")


@pytest.fixture
def adapter(folder: Path) -> Adapter:
    return load_adapter(str(folder), max_sequence_length=0)


def levels(adapter: Adapter, found: Contract) -> Any:
    grid = adapter.sigmas(found.steps, 64, 64, found.of(found.steps))
    return pytest.approx(grid, abs=1e-3)


def of(adapter: Adapter, folder: Path = Path("tiny"), **files: Any) -> Contract:
    card, index = files.get("card", {}), files.get("index", {})
    return contract(folder, card, index, adapter, files.get("asked", Sampling()))


@pytest.mark.parametrize(
    "path, expected",
    [
        ("anything", DEFAULT),
        ("stable-diffusion-3.5-large-turbo", DEFAULT),
        ("models--byliutao--stable-diffusion-3-medium-turbo/snapshots/0123", EVEN),
    ],
)
def test_a_published_checkpoint(adapter: Adapter, path: str, expected: list[float]) -> None:
    found = of(adapter, Path(path))
    assert expected == levels(adapter, found)
    assert "is known" in found.source or path == "anything"


def test_a_card_has_sigmas_by_number_of_steps(adapter: Adapter) -> None:
    two, four = [1.0, 0.4], CARD["sigmas"]
    found = of(adapter, card=CARD | {"sigmas": {"4": four, "2": two}})
    assert levels(adapter, found) == EVEN
    assert adapter.sigmas(2, 64, 64, found.of(2)) == pytest.approx([1.0, 2 / 3, 0.0])


@pytest.mark.parametrize(
    "timesteps, expected",
    [
        ([1000, 900, 750, 500], EVEN),
        ([1000, 858.6, 602, 8.9, 0], DEFAULT),
        ([0.999, 0.937, 0.833, 0.624, 0.0], [0.999, 0.937, 0.833, 0.624, 0.0]),
        (None, DEFAULT),
    ],
)
def test_dmd2_config(adapter: Adapter, timesteps: Any, expected: list[float]) -> None:
    config = {"num_inference_steps": 4, "denoising_timesteps": timesteps, "guidance_scale": 1.0}
    assert expected == levels(adapter, of(adapter, index={"dmd2_config": config}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"solver": "sde"}, "solver 'sde'.*Euler steps"),
        ({"guidance_scale": 4.5}, "guidance_scale is 4.5; expected 0 or 1"),
        ({"denoising_timesteps": [500, 750]}, "as many denoising_timesteps, falling"),
        ({"num_inference_steps": None, "denoising_timesteps": None}, "needs num_inference_steps"),
    ],
)
def test_a_dmd2_config_that_is_not_served(
    adapter: Adapter, changes: dict[str, Any], message: str
) -> None:
    config = {"num_inference_steps": 2, "denoising_timesteps": [1000, 500]} | changes
    with pytest.raises(ExportError, match=message):
        of(adapter, index={"dmd2_config": config})


def test_what_is_said_by_hand_comes_first(adapter: Adapter) -> None:
    even = of(adapter, asked=parse_sampling(grid="even"))
    assert levels(adapter, even) == EVEN
    assert "--grid" in even.source
    own = of(adapter, asked=parse_sampling(sigmas="1,0.4"))
    assert levels(adapter, own) == [1.0, 2 / 3, 0.0]
    assert of(adapter, asked=parse_sampling(6)).steps == 6


def test_a_guidance_embedding_is_told_its_scale(adapter: Adapter, tmp_path: Path) -> None:
    dev = load_adapter(str(tiny_flux(tmp_path / "dev", guidance=True)))
    assert of(dev).guidance == 3.5  # as diffusers does without being told
    assert of(dev, card=CARD | {"guidance_scale": 4.5}).guidance == dev.guidance_scale == 4.5
    assert of(dev, index={"dmd2_config": {"num_inference_steps": 4, "guidance_scale": 2}}) == (
        Contract(4, "default", "dmd2_config in model_index.json says it", guidance=2.0)
    )
    assert "told guidance 7" in str(of(dev, asked=parse_sampling(guidance=7)))
    with pytest.raises(ExportError, match=r"--guidance 7: .* has no guidance embedding"):
        of(adapter, asked=parse_sampling(guidance=7))
    with pytest.raises(ExportError, match="--guidance nan: expected a number from 0 up"):
        parse_sampling(guidance=float("nan"))


def test_a_shift_said_by_hand_is_that_of_every_size(tmp_path: Path) -> None:
    """Qwen-Image under a Lightning LoRA, whose scheduler stretches by size and to an end."""
    folder = tiny_qwen_image(tmp_path / "qwen-image")
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
    )
    scheduler.save_pretrained(folder / "scheduler")
    adapter = load_adapter(str(folder))
    found = of(adapter, asked=parse_sampling(4, shift=3.0))
    assert levels(adapter, found) == EVEN
    with pytest.raises(ExportError, match="--shift 0: expected a positive number"):
        parse_sampling(shift=0)


@pytest.mark.parametrize(
    "steps, sigmas", [(0, None), (None, "1,a"), (None, "0.5,1"), (None, "2,1"), (3, "1,0.5")]
)
def test_what_is_said_wrongly_by_hand(steps: int | None, sigmas: str | None) -> None:
    with pytest.raises(ExportError, match="--s"):
        parse_sampling(steps, sigmas)


def draw(pipeline: Any, **options: Any) -> Any:
    """Stock diffusers' final latents, which show what eight bits of a picture hide."""
    return pipeline(
        prompt=PROMPTS[0],
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=0.0,
        max_sequence_length=1,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **options,
    ).images


# How the cards of published checkpoints call their pipelines; guidance is counted from 0 or 1.
CALLS: dict[str, dict[str, Any]] = {
    "sd3.5": {"guidance_scale": 0.0},
    "flux": {"guidance_scale": 0.0, "max_sequence_length": 256},
    "flux-dev": {"guidance_scale": 3.5},
    "klein": {"guidance_scale": 1.0},
    "qwen-image": {"true_cfg_scale": 1.0, "guidance_scale": None},
    "z-image": {"guidance_scale": 0.0},  # called 5 steps by older releases of diffusers
}


@pytest.mark.parametrize("name", CALLS)
def test_without_a_card_pictures_are_those_of_the_published_call(name: str, once: Once) -> None:
    published = once(f"student-{name}", lambda folder: family(name, folder))
    adapter = load_adapter(str(published))
    pipeline = adapter.pipeline
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 4, "output_type": "pt", "prompt": PROMPTS[0]}
    options |= {"generator": torch.manual_seed(3), "height": 64, "width": 96}
    expected = pipeline(**options | CALLS[name]).images
    noise = torch.randn((1, *adapter.latent_shape(64, 96)), generator=torch.manual_seed(3))
    sigmas = adapter.sigmas(4, 64, 96, of(adapter).of(4))
    with torch.no_grad():
        latents = sample(
            lambda x, s, c: adapter.velocity(adapter.transformer, x, s, c),
            noise, sigmas, adapter.encode(PROMPTS[:1]),
        )  # fmt: skip
    found = (adapter.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_pictures_are_stock_diffusers_own(folder: Path, tmp_path: Path) -> None:
    adapter = load_adapter(str(folder), max_sequence_length=1)
    noise = torch.randn((1, *adapter.latent_shape(64, 64)), generator=torch.manual_seed(3))
    condition = adapter.encode(PROMPTS[:1])

    def ours(found: Contract) -> torch.Tensor:
        sigmas = adapter.sigmas(4, 64, 64, found.of(4))
        with torch.no_grad():
            return sample(
                lambda x, s, c: adapter.velocity(adapter.transformer, x, s, c),
                noise, sigmas, condition,
            )  # fmt: skip

    turbo = ours(of(adapter))
    adapter.pipeline.set_progress_bar_config(disable=True)
    torch.testing.assert_close(turbo, draw(adapter.pipeline), rtol=0, atol=1e-5)
    # A student of ours, read by diffusers, and by a server that knows dmd2_config.
    adapter.pipeline.save_pretrained(tmp_path)
    write_stock(adapter, 4, 64, 64, tmp_path)
    stock = StableDiffusion3Pipeline.from_pretrained(
        tmp_path, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    stock.set_progress_bar_config(disable=True)
    even = ours(of(adapter, card=CARD))
    torch.testing.assert_close(even, draw(stock), rtol=0, atol=1e-5)
    assert not np.allclose(even, turbo, atol=1e-2)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert levels(adapter, of(adapter, index=index)) == EVEN
    # With its card a student has the teacher's scheduler again, for every number of steps.
    (tmp_path / "cdm.json").write_text(json.dumps(CARD | {"shift": 3.0}))
    restored = load_adapter(str(tmp_path)).pipeline.scheduler
    assert restored.config.shift == 3.0
    assert isinstance(restored, FlowMatchEulerDiscreteScheduler)
    assert load_adapter(str(tmp_path)).sigmas(8, 64, 64) == adapter.sigmas(8, 64, 64)
