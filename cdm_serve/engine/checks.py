"""Whether a job is one for a model: everything that can be said before anything is computed."""

import numpy as np

from cdm_serve.engine.job import EngineError, Job
from cdm_serve.engine.manifest import Manifest


def sigmas_of(job: Job, manifest: Manifest) -> tuple[float, ...]:
    """The noise levels of all its steps, one more than there are steps.

    Raises:
        EngineError: kind ``invalid``, with what is served instead.
    """
    grids = manifest.grids(job.size)
    if grids is None:
        raise _invalid(f"size {job.size} is not served, only {', '.join(manifest.sizes)}")
    if job.steps not in grids:
        served = ", ".join(map(str, sorted(grids)))
        raise _invalid(f"{job.steps} steps are not served, only {served}")
    if job.decoder not in manifest.decoders:
        served = ", ".join(manifest.decoders)
        raise _invalid(f"decoder {job.decoder} is not served, only {served}")
    _check_tensors(job, manifest)
    try:
        job.prompt.encode()
    except UnicodeEncodeError as error:
        raise _invalid("the prompt is not valid Unicode") from error
    return grids[job.steps]


def _check_tensors(job: Job, manifest: Manifest) -> None:
    width, height = map(int, job.size.split("x"))
    possible = {
        "picture": (np.dtype(np.uint8), (height, width, 3)),
        "mask": (np.dtype(bool), (height, width)),
    }
    for name, tensor in job.tensors.items():
        if possible.get(name) != (tensor.dtype, tensor.shape):
            found = f"{tensor.dtype} of {tensor.shape}"
            raise _invalid(f"tensor {name} is {found}, unknown to this engine")
    if "picture" in job.tensors and not manifest.edits:
        raise _invalid("the model was exported without vae_encoder")
    if ("mask" in job.tensors or job.start) and "picture" not in job.tensors:
        raise _invalid("mask and start are for a picture, and there is none")
    if manifest.needs_picture and "picture" not in job.tensors:
        raise _invalid("the model makes nothing without a picture")
    if not 0 <= job.start < job.steps:
        raise _invalid(f"no start {job.start} among {job.steps} steps")


def _invalid(what: str) -> EngineError:
    return EngineError(what, "invalid")
