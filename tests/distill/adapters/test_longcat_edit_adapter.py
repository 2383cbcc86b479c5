"""LongCat-Image-Edit's adapter against diffusers' own pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny_longcat_edit

from distill.adapters import Adapter, load_adapter
from distill.errors import DistillError
from distill.flow import sample

PROMPT = "make the sign say 'two owls'"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tiny_longcat_edit(tmp_path_factory.mktemp("pipeline") / "folder")
    adapter = load_adapter(str(folder))
    adapter.pipeline.set_progress_bar_config(disable=True)
    return adapter


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height))


# The second has two windows of the vision tower in a row.
@pytest.mark.parametrize("height, width", [(128, 176), (128, 288)])
def test_four_steps_are_the_pipelines_picture(adapter: Adapter, height: int, width: int) -> None:
    given = image(height, width)
    generator = torch.Generator().manual_seed(3)
    expected = adapter.picture(PROMPT, 4, height, width, generator, image=given)
    pictures = adapter.pipeline.image_processor.preprocess(given)
    condition = adapter.condition([PROMPT], pictures)
    shape = (1, *adapter.latent_shape(height, width))

    def velocity(x: torch.Tensor, sigma: torch.Tensor, condition: object) -> torch.Tensor:
        return adapter.velocity(adapter.transformer, x, sigma, condition)  # type: ignore[arg-type]

    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    latents = sample(velocity, noise, adapter.sigmas(4, height, width), condition)
    (found,) = adapter.pipeline.image_processor.postprocess(adapter.decode(latents))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    # Neither half of the condition is idle.
    other = adapter.condition([PROMPT], -pictures)
    for name, tensor in condition.tensors.items():
        mixed = type(condition)(condition.tensors | {name: other.tensors[name]})
        assert tensor.shape == other.tensors[name].shape
        changed = sample(velocity, noise, adapter.sigmas(4, height, width), mixed)
        assert not torch.allclose(changed, latents, atol=1e-3)


def test_a_condition_without_contents_has_the_real_ones_shapes(adapter: Adapter) -> None:
    side = adapter.default_side
    pictures = adapter.pipeline.image_processor.preprocess(image(side, side))
    real = adapter.condition([PROMPT], pictures).tensors
    empty = adapter.empty_condition(1).tensors
    assert {n: t.shape for n, t in empty.items()} == {n: t.shape for n, t in real.items()}


def test_it_is_not_distilled_and_other_sizes_are_refused(adapter: Adapter) -> None:
    with pytest.raises(DistillError, match="no condition of a prompt alone"):
        adapter.encode([PROMPT])
    with pytest.raises(DistillError, match="sees pictures at half their size"):
        adapter.latent_shape(16, 64)
