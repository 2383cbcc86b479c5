"""Pictures of an exported model by the serving engine's own runtime, without a server."""

import numpy as np

from cdm_serve.engine.job import Pixels
from cdm_serve.engine.pipeline import Pipeline


def draw(pipeline: Pipeline, prompts: list[str], batch: int) -> Pixels:
    """One picture a prompt at the model's own size and steps, (N, H, W, 3) uint8.

    Picture i starts from seed i.
    """
    manifest = pipeline.manifest
    size = manifest.default_size
    sigmas = np.array(manifest.sigmas[size][manifest.default_steps], dtype=np.float32)
    drawn = []
    for first in range(0, len(prompts), batch):
        conditions = pipeline.encode(prompts[first : first + batch])
        rows = len(conditions)
        latents = pipeline.stack([pipeline.noise(first + row, size) for row in range(rows)])
        drawn.append(pipeline.decode(pipeline.denoise(latents, sigmas, conditions)))
    return np.concatenate(drawn)
