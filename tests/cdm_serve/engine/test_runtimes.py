"""The code that serves a GPU, on the CPU's provider: same binding, same graphs."""

import numpy as np
import pytest

from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import fit_precision, open_runtime
from cdm_serve.engine.runtimes.onnxruntime import OnnxRuntime
from cdm_serve.errors import StartError


@pytest.fixture(scope="module")
def bound(manifest):
    return Pipeline(manifest, OnnxRuntime("cpu"))


@pytest.fixture(scope="module")
def reference(manifest):
    return Pipeline(manifest, open_runtime("openvino", "f32"))


def test_gives_what_openvino_gives(bound, reference):
    prompts = ["a fox", "an owl at night"]
    conditions, expected = bound.encode(prompts), reference.encode(prompts)
    for one, other in zip(conditions, expected, strict=True):
        assert one.tokens == other.tokens
        for name in ("prompt_embeds", "pooled"):
            assert np.allclose(one.embeds[name], other.embeds[name], atol=1e-4)
    latents = bound.stack([bound.noise(seed, "96x64") for seed in range(2)])
    sigma = np.array([1.0, 0.4], dtype=np.float32)
    velocity = bound.velocity(latents, sigma, expected)
    assert np.allclose(velocity, reference.velocity(latents, sigma, expected), atol=1e-4)
    images = bound.decode(latents).astype(int)
    assert np.abs(images - reference.decode(latents)).max() <= 1


def test_outputs_outlive_the_next_run(bound):
    first = bound.encode(["a fox"])[0]
    kept = first.embeds["prompt_embeds"].copy()
    latents = bound.noise(1, "64x64")[None]
    velocity = bound.velocity(latents, np.ones(1, np.float32), [first])
    before = velocity.copy()
    bound.velocity(-latents, np.zeros(1, np.float32), bound.encode(["something else"]))
    assert np.array_equal(velocity, before)
    assert np.array_equal(first.embeds["prompt_embeds"], kept)


@pytest.mark.parametrize(
    ("fit", "name", "precision", "opened"),
    [
        (("openvino-f32", "openvino-bf16"), "openvino", "auto", "auto"),
        (("openvino-f32",), "openvino", "auto", "f32"),
        (("openvino-f32",), "openvino", "f32", "f32"),
        (("openvino-f32",), "onnxruntime", "auto", "auto"),
        (("openvino-f32", "tensorrt"), "tensorrt", "auto", "auto"),
    ],
)
def test_a_runtime_that_is_fit(fit, name, precision, opened):
    assert fit_precision(fit, name, precision) == opened


@pytest.mark.parametrize(
    ("fit", "name", "precision"),
    [
        (("openvino-f32",), "openvino", "bf16"),
        (("openvino-bf16",), "openvino", "f32"),
        ((), "openvino", "auto"),
        (("openvino-f32",), "tensorrt", "auto"),
    ],
)
def test_a_runtime_that_is_not_fit_is_refused(fit, name, precision):
    with pytest.raises(StartError, match=rf"not found fit for {name}.*export again"):
        fit_precision(fit, name, precision)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("onnxruntime", r"this onnxruntime has no CUDAExecutionProvider: .*cdm-serve\[cuda"),
        ("tensorrt", "the package tensorrt is missing: pip install .*cdm-serve.tensorrt"),
    ],
)
def test_without_a_gpu_they_say_what_is_missing(name, complaint):
    with pytest.raises(StartError, match=complaint):
        open_runtime(name, "auto")


@pytest.mark.parametrize(
    ("name", "precision", "complaint"),
    [
        ("abacus", "auto", "'abacus' is none of openvino, onnxruntime, tensorrt"),
        ("openvino", "fp8", "'fp8' is none of auto, f32, bf16"),
    ],
)
def test_unknown_names_are_refused(name, precision, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_runtime(name, precision)
