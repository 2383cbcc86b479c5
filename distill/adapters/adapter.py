"""What all architectures have alike, and what each must say of itself."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor, nn

from distill.adapters.condition import Condition
from distill.errors import DistillError

Grid = Literal["even", "default"] | tuple[float, ...]
"""Sigmas before the shift: N even ones from 1, the pipeline's own choice, or those given."""

# With one of these the scheduler resamples the whole grid, or does not step along the velocity.
_OTHER_SAMPLERS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)
_ADDS_NOISE = re.compile("LCM|TCD|Flash|stochastic|Ancestral")


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """That its steps are plain ones, told from its class and what it is configured with.

    Raises:
        DistillError: they are not.
    """
    wanted = FlowMatchEulerDiscreteScheduler.__name__
    on = [option for option in _OTHER_SAMPLERS if config.get(option)]
    if name == wanted and not on:
        return
    found = name + (f" with {' and '.join(on)}" if on else "")
    noise = ", which adds noise after each" if _ADDS_NOISE.search(found) else ""
    raise DistillError(
        f"the scheduler {found} is not flow matching by plain Euler steps{noise}; expected "
        f"{wanted}{' without it' if on else ''}: if the checkpoint was made for that, change "
        "scheduler/scheduler_config.json"
    )


class Adapter(ABC):
    """One architecture around a flow-matching Euler scheduler and a KL autoencoder.

    Noise levels are sigmas: 1 is noise, 0 the picture. Pictures are (B, 3, H, W) in [-1, 1].

    Args:
        pipeline: the diffusers pipeline whose components are used as they are.
        patch_size: latent pixels a side of an image token.
        latent_channels: channels of the latents.
        max_sequence_length: text tokens of the text encoder whose length can be chosen.
        options: what the pipeline is called with, besides what every pipeline takes.

    Raises:
        DistillError: the scheduler takes no Euler steps over sigmas shifted one by one.
    """

    name: ClassVar[str]
    half: ClassVar[torch.dtype]  # the type of two bytes in which the networks are sound
    optional: ClassVar[frozenset[str]] = frozenset()  # components that may be absent
    ignored: ClassVar[frozenset[str]] = frozenset()  # components that are never loaded
    # What a single-file checkpoint calls text encoders, by component.
    text_encoders: ClassVar[dict[str, str]] = {}
    # Whether the pipeline, called without sigmas, takes the scheduler's grid and not an even one.
    scheduler_grid: ClassVar[bool] = False
    # Whether all that ``decode`` needs of the autoencoder is a scale and a shift of its own.
    plain_latents: ClassVar[bool] = True
    # What the pipeline is called with; 1 is none. With a guidance embedding it is an input.
    guidance_scale: float = 1.0
    guidance_embedding = False
    # Whether it edits: there is no condition of a prompt without a picture.
    needs_picture: ClassVar[bool] = False

    def __init__(
        self,
        pipeline: Any,
        patch_size: int,
        latent_channels: int,
        max_sequence_length: int,
        options: dict[str, Any],
    ) -> None:
        scheduler = pipeline.scheduler
        check_scheduler(type(scheduler).__name__, scheduler.config)
        self.pipeline = pipeline
        self.max_sequence_length = max_sequence_length
        self._patch_size = patch_size
        self._latent_channels = latent_channels
        self._options = options

    @abstractmethod
    def encode(self, prompts: list[str]) -> Condition:
        """One row a prompt, as the pipeline encodes it; ``""`` is the null condition."""

    def condition(self, prompts: list[str], pictures: Tensor | None = None) -> Condition:
        """``encode``; where it ``needs_picture``, of ``pictures`` (B, 3, H, W) too."""
        return self.encode(prompts)

    @abstractmethod
    def empty_condition(self, rows: int) -> Condition:
        """Tensors without contents of the shapes that ``encode`` gives."""

    def views(self, height: int, width: int) -> list[tuple[int, int, str]]:
        """How the text encoder's picture is made of one of a size, where it ``needs_picture``.

        Width, height and Pillow's filter of every resize, in turn.
        """
        return []

    def condition_shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of one row for a picture of a size, by name."""
        return {
            name: tuple(each.shape[1:]) for name, each in self.empty_condition(1).tensors.items()
        }

    @abstractmethod
    def velocity(self, model: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """The velocity eps - x0, (B, C, h, w), without guidance.

        Args:
            model: the transformer or a network of its architecture.
            x: noisy latents (B, C, h, w).
            sigma: (B,) in [0, 1], in float32.
            condition: B rows.
        """

    @property
    def transformer(self) -> nn.Module:
        """The pipeline's velocity network."""
        transformer: nn.Module = self.pipeline.transformer
        return transformer

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The pipeline's networks by the names of its components."""
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if isinstance(part, nn.Module)}

    @property
    def default_side(self) -> int:
        """Pixels a side of the picture that the pipeline makes where no size is asked for."""
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    @property
    def downscale(self) -> int:
        """Pixels a side of a latent."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def multiple(self) -> int:
        """Pixels a side that the VAE and the patches divide a size by."""
        return self.downscale * self._patch_size

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents, for a size in pixels.

        Raises:
            DistillError: the size is no multiple of ``multiple``.
        """
        downscale, multiple = self.downscale, self.multiple
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise DistillError(
                f"size {width}x{height}: width and height must be positive multiples of {multiple}"
            )
        return self._latent_channels, height // downscale, width // downscale

    def sigmas(self, steps: int, height: int, width: int, grid: Grid = "even") -> list[float]:
        """The Euler grid that the pipeline steps along: ``steps + 1`` values that end at 0.0."""
        if grid != "default":
            return self._grid(height, width, sigmas=_given(steps, grid)).tolist()
        if self.scheduler_grid:
            return self._grid(height, width, num_inference_steps=steps).tolist()
        return self._grid(height, width, sigmas=np.linspace(1.0, 1 / steps, steps)).tolist()

    def shift(self, sigmas: Tensor, height: int, width: int) -> Tensor:
        """The scheduler's own shift of each sigma, any shape, as the pipeline would apply it.

        Raises:
            DistillError: the scheduler stretches whole grids, so that no sigma has its own.
        """
        if self.pipeline.scheduler.config.shift_terminal:
            raise DistillError(
                "the scheduler has a shift_terminal, which moves whole grids and no sigma alone; "
                "expected null to train with: change scheduler/scheduler_config.json"
            )
        shifted = self._grid(height, width, sigmas=sigmas.flatten().tolist())[:-1]
        return shifted.reshape(sigmas.shape).to(sigmas)

    def _grid(self, height: int, width: int, **choice: Any) -> Tensor:
        scheduler = copy.copy(self.pipeline.scheduler)  # set_timesteps only rebinds attributes
        steps = choice.get("num_inference_steps") or len(choice["sigmas"])
        with np.errstate(divide="ignore"):  # a dynamic shift finds its 0 for sigma 0 by 1 / 0
            scheduler.set_timesteps(mu=self._dynamic_shift(height, width, steps), **choice)
        sigmas: Tensor = scheduler.sigmas
        return sigmas

    def guided(self, with_prompt: Tensor, without: Tensor, scale: float) -> Tensor:
        """The velocity that the pipeline samples along under classifier-free guidance.

        Args:
            with_prompt: ``velocity`` for the prompts, (B, C, h, w).
            without: ``velocity`` for the null condition, at the same points.
            scale: 1 is ``with_prompt``.
        """
        return without + scale * (with_prompt - without)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), not clamped."""
        vae = self.pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        pictures: Tensor = vae.decode(scaled, return_dict=False)[0]
        return pictures.float()

    def with_vae(self, vae: nn.Module) -> Self:
        """The same around another autoencoder for the same latents."""
        other = copy.copy(self)
        other.pipeline = copy.copy(self.pipeline)
        other.pipeline.vae = vae
        return other

    @property
    def encodes_pictures(self) -> bool:
        """Whether the VAE has an encoder."""
        return hasattr(self.pipeline.vae, "encoder")

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> the latents (B, C, h, w) that ``decode`` turns back."""
        vae = self.pipeline.vae
        mean = vae.encode(pictures.to(vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def picture(
        self,
        prompt: str,
        steps: int,
        height: int,
        width: int,
        generator: torch.Generator,
        grid: Grid = "even",
        image: Any = None,
    ) -> Any:
        """The pipeline's own picture by ``steps`` steps, as PIL, without guidance by two passes.

        Where it ``needs_picture``, of ``image``, as PIL.
        """
        options = {"guidance_scale": self.guidance_scale} | self._options
        return self.pipeline(
            prompt=prompt,
            num_inference_steps=steps,
            sigmas=None if grid == "default" else _given(steps, grid),
            generator=generator,
            output_type="pil",
            **options,
            **({"image": image} if self.needs_picture else {"height": height, "width": width}),
        ).images[0]

    def _unit_timestep(self, sigma: Tensor, x: Tensor) -> Tensor:
        """What pipelines hand over that divide the timestep of the latents' type by 1000.

        It is rounded at its full scale first, in bfloat16 904.5 to 904. Transformers multiply by
        1000 again in that type; from 0.9045 it would come to 908.
        """
        timestep: Tensor = sigma * self.pipeline.scheduler.config.num_train_timesteps
        return timestep.to(_compute_dtype(x)) / 1000

    def _dynamic_shift(self, height: int, width: int, steps: int) -> float:
        """The exponent ``mu`` for a size; a scheduler of constant shift does not look at it."""
        _, h, w = self.latent_shape(height, width)
        config = self.pipeline.scheduler.config
        mu: float = calculate_shift(
            (h // self._patch_size) * (w // self._patch_size),
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        return mu


def _given(steps: int, grid: Grid) -> list[float]:
    return [1.0 - i / steps for i in range(steps)] if grid == "even" else list(map(float, grid))


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The type the transformer works in; it is that of the pipeline's latents in sampling."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
