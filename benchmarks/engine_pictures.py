"""Pictures of an exported model by the serving engine's own runtime, without a server."""

from itertools import pairwise

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
        for sigma, following in pairwise(sigmas):
            velocity = pipeline.velocity(latents, np.full(rows, sigma), conditions)
            latents = pipeline.move(latents, np.full(rows, following - sigma), velocity)
        drawn.append(pipeline.decode(latents))
    return np.concatenate(drawn)
