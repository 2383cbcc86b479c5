"""The same numbers in any batch: what lets strangers share one without a trace in the picture."""

import numpy as np
import pytest

from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime

BATCHES = (2, 3, 5, 7, 8, 11, 16)
PROMPTS = [f"prompt {i} " + "word " * i for i in range(16)]


@pytest.fixture(params=["auto", pytest.param("f32", marks=pytest.mark.slow)])
def any_pipeline(request, manifest, pipeline):
    if request.param == "auto":
        return pipeline
    return Pipeline(manifest, open_runtime("openvino", request.param))


@pytest.mark.parametrize("size", ["64x64", "96x64"])
def test_a_row_does_not_depend_on_its_batch(any_pipeline, size):
    alone = [any_pipeline.encode([prompt])[0] for prompt in PROMPTS]
    latents = np.stack([any_pipeline.noise(i, size) for i in range(16)])
    sigma = np.linspace(0.05, 1.0, 16, dtype=np.float32)
    rows = [slice(i, i + 1) for i in range(16)]
    velocity = np.concatenate(
        [any_pipeline.velocity(latents[row], sigma[row], alone[row]) for row in rows]
    )
    images = np.concatenate([any_pipeline.decode(latents[row]) for row in rows])
    for batch in BATCHES:
        last = slice(16 - batch, 16)
        for one, other in zip(alone[last], any_pipeline.encode(PROMPTS[last]), strict=True):
            assert one.embeds.keys() == other.embeds.keys() == {"prompt_embeds", "pooled"}
            for name, array in one.embeds.items():
                assert np.array_equal(array, other.embeds[name])
        batched = any_pipeline.velocity(latents[last], sigma[last], alone[last])
        assert np.array_equal(batched, velocity[last])
        assert np.array_equal(any_pipeline.decode(latents[last]), images[last])


def test_shapes(pipeline):
    (condition,) = pipeline.encode(["a fox"])
    latents = pipeline.noise(1, "96x64")
    assert latents.shape == (4, 16, 24)
    velocity = pipeline.velocity(latents[None], np.ones(1, np.float32), [condition])
    assert velocity.shape == (1, 4, 16, 24)
    assert velocity.dtype == np.float32
    image = pipeline.decode(latents[None])
    assert image.shape == (1, 64, 96, 3)
    assert image.dtype == np.uint8
    assert condition.nbytes == sum(array.nbytes for array in condition.embeds.values()) > 0


def test_a_move_is_linear(pipeline):
    latents, velocity = np.random.default_rng(0).normal(size=(2, 3, 4, 8, 8)).astype(np.float32)
    distance = np.array([0.0, -0.25, 1.0], dtype=np.float32)
    moved = pipeline.move(latents, distance, velocity)
    assert moved.dtype == np.float32
    for row in range(3):
        expected = latents[row].astype(np.float64) + float(distance[row]) * velocity[row]
        assert np.allclose(moved[row], expected, rtol=1e-6, atol=1e-6)
