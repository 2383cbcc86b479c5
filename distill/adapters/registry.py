"""The architectures there are, one line each."""

from __future__ import annotations

import importlib
from typing import Any

# A pipeline's class in diffusers -> its adapter and its exporter, imported when they are needed.
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "StableDiffusion3Pipeline": ("distill.adapters.sd3:Sd3Adapter", "export.architectures.sd3:Sd3"),
    "LongCatImagePipeline": (
        "distill.adapters.longcat:LongCatAdapter",
        "export.architectures.longcat:LongCat",
    ),
    "LongCatImageEditPipeline": (
        "distill.adapters.longcat_edit:LongCatEditAdapter",
        "export.architectures.longcat_edit:LongCatEdit",
    ),
    "FluxPipeline": ("distill.adapters.flux:FluxAdapter", "export.architectures.flux:Flux"),
    "Flux2KleinPipeline": (
        "distill.adapters.flux2:Flux2KleinAdapter",
        "export.architectures.flux2:Flux2Klein",
    ),
    "ZImagePipeline": (
        "distill.adapters.z_image:ZImageAdapter",
        "export.architectures.z_image:ZImage",
    ),
    "QwenImagePipeline": (
        "distill.adapters.qwen_image:QwenImageAdapter",
        "export.architectures.qwen_image:QwenImage",
    ),
}

# Few-step pipelines whose steps are not Euler's along a velocity; each with what they are.
OTHER_STEPS: dict[str, str] = {
    "StableDiffusionPipeline": "predicts the noise of a variance-preserving diffusion (SD-Turbo)",
    "StableDiffusionXLPipeline": "predicts the noise of a variance-preserving diffusion "
    "(SDXL-Turbo, SDXL-Lightning)",
    "LatentConsistencyModelPipeline": "takes consistency steps, which add noise after each (LCM)",
    "SanaSprintPipeline": "is a TrigFlow, whose angles are no noise levels (Sana-Sprint)",
}


def adapter_class(pipeline_class: str) -> Any:
    """The adapter of a pipeline's class.

    Raises:
        KeyError: there is none.
    """
    return _imported(ARCHITECTURES[pipeline_class][0])


def exporter_class(pipeline_class: str) -> Any:
    """The exporter of a pipeline's class; needs the packages of the extra ``export``.

    Raises:
        KeyError: there is none.
    """
    return _imported(ARCHITECTURES[pipeline_class][1])


def _imported(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
