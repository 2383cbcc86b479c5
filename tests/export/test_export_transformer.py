from pathlib import Path

import numpy as np
import pytest
import torch

from distill.adapters import Sd3Adapter
from export.session import OnnxPipeline
from export.transformer import transformer_graph

# Patch counts: even, odd, odd by even, the least, the most the position embeddings hold.
LATENTS = [(16, 16), (18, 14), (18, 16), (2, 2), (48, 48)]


@pytest.mark.parametrize("height, width", LATENTS)
def test_velocity_equals_diffusers(
    exported: Path, adapter: Sd3Adapter, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, height, width, generator=generator)
    sigma = torch.tensor([1.0, 0.3])
    condition = adapter.encode(["a fox in the snow", ""])
    with torch.no_grad():
        expected = adapter.pipeline.transformer(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=condition.prompt_embeds,
            pooled_projections=condition.pooled,
        ).sample
    (velocity,) = OnnxPipeline(exported / "1").run(
        "transformer",
        latents=latents.numpy(),
        sigma=sigma.numpy(),
        prompt_embeds=condition.prompt_embeds.numpy(),
        pooled=condition.pooled.numpy(),
    )
    np.testing.assert_allclose(velocity, expected, atol=1e-5)


@pytest.mark.parametrize("height, width", LATENTS)
def test_the_crop_by_index_is_diffusers_own(adapter: Sd3Adapter, height: int, width: int) -> None:
    pos_embed = adapter.pipeline.transformer.pos_embed
    expected = pos_embed.cropped_pos_embed(height, width)
    with transformer_graph(adapter):
        assert torch.equal(pos_embed.cropped_pos_embed(height, width), expected)
    assert "cropped_pos_embed" not in vars(pos_embed)  # the class's own again
