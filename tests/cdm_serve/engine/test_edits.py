"""Pictures that come in, against diffusers' own pipelines on the same noise and sigmas."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline
from PIL import Image

from cdm_serve.engine.costs import Costs, Curve
from cdm_serve.engine.job import EngineError, Job, Picture
from cdm_serve.engine.manifest import COMPONENTS
from cdm_serve.engine.pipeline import Pipeline
from cdm_serve.engine.runtimes import open_runtime
from cdm_serve.engine.scheduler import Scheduler
from distill.adapters import load_adapter
from export.compare import psnr_db

SIZE, WIDTH, HEIGHT, STEPS = "96x64", 96, 64, 4
ONE = Curve({1: 0.001})
PICTURE = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[8:40, 20:60] = MASK[32:, 72:] = True  # edges between latents, as diffusers' nearest has them


@pytest.fixture(scope="module")
def scheduler(manifest):
    sizes = {SIZE: ONE}
    pipeline = Pipeline(manifest, open_runtime("openvino", "f32"))
    scheduler = Scheduler(pipeline, Costs(ONE, sizes, sizes, sizes, sizes), cache_bytes=2**20)
    yield scheduler
    scheduler.close()


def drawn(scheduler, start, mask=None, seed=11):
    answers = []
    tensors = {"picture": PICTURE} | ({} if mask is None else {"mask": mask})
    job = Job("a fox", seed, STEPS, SIZE, start=start, tensors=tensors)
    scheduler.submit("edit", job, answers.append)
    while not answers:
        pass
    assert isinstance(answers[0], Picture), answers
    return answers[0]


def reference(student, kind, strength, **more):
    adapter = load_adapter(str(student))
    pipeline = kind(**adapter.pipeline.components)
    encode = pipeline.vae.encode
    # Its encoder's mean, where diffusers draws, and the noise after it from the same generator.
    pipeline.vae.encode = lambda x: SimpleNamespace(latents=encode(x).latent_dist.mode())
    # diffusers inpaints with this many channels alone, but looks at nothing else of them.
    pipeline.transformer.register_to_config(in_channels=16)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt="a fox",
        image=Image.fromarray(PICTURE),
        width=WIDTH,
        height=HEIGHT,
        strength=strength,
        num_inference_steps=STEPS,
        sigmas=[1 - i / STEPS for i in range(STEPS)],
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=torch.Generator("cpu").manual_seed(11),
        output_type="latent",  # diffusers' inpainting forgets the VAE's shift when it decodes
        **more,
    ).images
    decoded = pipeline.image_processor.postprocess(adapter.decode(latents), output_type="pil")
    return np.asarray(decoded[0])


# Of four steps strength keeps the last ceil(4 * strength).
@pytest.mark.parametrize(("strength", "start"), [(0.2, 3), (0.75, 1), (1.0, 0)])
def test_image_to_image_is_diffusers(scheduler, student, strength, start):
    found = drawn(scheduler, start)
    assert found.report["batches"] == [1] * (STEPS - start)
    expected = reference(student, StableDiffusion3Img2ImgPipeline, strength)
    assert psnr_db(found.image, expected) >= 60
    assert psnr_db(found.image, PICTURE) < 60


@pytest.mark.parametrize(("strength", "start"), [(0.6, 1), (1.0, 0)])
def test_inpainting_is_diffusers_and_the_rest_is_the_pictures_own(
    scheduler, student, strength, start
):
    found = drawn(scheduler, start, MASK).image
    mask = Image.fromarray(MASK)
    expected = reference(student, StableDiffusion3InpaintPipeline, strength, mask_image=mask)
    assert psnr_db(found[MASK][None], expected[MASK][None]) >= 60
    assert np.array_equal(found[~MASK], PICTURE[~MASK])
    # What is kept is what the painted part fits to.
    assert not np.array_equal(found[MASK], drawn(scheduler, start).image[MASK])


def test_a_stroke_thinner_than_a_latent_is_painted(scheduler):
    stroke = np.zeros((HEIGHT, WIDTH), bool)
    stroke[33, 5:90] = True
    found = drawn(scheduler, 0, stroke).image
    assert np.array_equal(found[~stroke], PICTURE[~stroke])
    kept = drawn(scheduler, 0, np.zeros((HEIGHT, WIDTH), bool)).image
    assert np.array_equal(kept, PICTURE)
    decoded = scheduler._pipeline.decode(scheduler._pipeline.encode_picture(PICTURE)[None])[0]
    assert np.abs(found[stroke].astype(int) - decoded[stroke]).max() > 8


def test_a_picture_is_encoded_once(scheduler):
    before = scheduler.describe()["histograms"]["picture_seconds"]["counts"]
    report = drawn(scheduler, 2, seed=1).report
    assert [stage for stage, _, _ in report["spans"]][:3] == ["queue", "text", "picture"]
    drawn(scheduler, 2, seed=2)
    after = scheduler.describe()["histograms"]["picture_seconds"]["counts"]
    assert sum(after) <= sum(before) + 1


def test_an_export_without_an_encoder_takes_no_pictures(manifest):
    components = {name: manifest.components[name] for name in COMPONENTS}
    old = replace(manifest, components=components)
    assert manifest.card().edits and not old.card().edits
    scheduler = Scheduler(Pipeline(old, open_runtime("openvino", "auto")), Costs(ONE, {}, {}), 0)
    job = Job("a fox", 1, STEPS, SIZE, tensors={"picture": PICTURE})
    with pytest.raises(EngineError, match="exported without vae_encoder"):
        scheduler.submit("key", job, lambda answer: pytest.fail("answered"))
    scheduler.close()
