"""The teacher: Stable Diffusion 3's transformer and two text encoders, trained together.

Rectified-flow training as in Stable Diffusion 3 (arXiv 2403.03206, sections 2 and 3.1): velocity
regression with logit-normal sigmas, one caption in ten left empty for classifier-free guidance.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTokenizer

from distill.adapters import load_adapter
from distill.demo.emoji.pool import LatentPool
from distill.demo.emoji.text import TEXT_WIDTH, new_text_encoder, token_ids
from distill.demo.emoji.training import Losses, Plan, train
from distill.errors import DistillError
from distill.flow import noised
from distill.losses import flow_matching_loss
from distill.networks import attention_kernel

LATENT_SHAPE = (8, 16, 16)
PREVIEW_PROMPTS = (
    "a fox in the snow",
    "an owl on the left on a purple background",
    "a large pizza on a teal background",
    "a small rocket at the top at night",
    "a cat left of a dog on a yellow background",
    "a sailboat at sea",
    "a castle above a heart on a white background",
    "a panda on the right in a grassy field",
)
EMPTY_CAPTIONS = 0.1
# Timesteps of the sampler; SD3 shifts its sigmas by 3 for 1024 px, a small canvas needs less noise.
SHIFT = 2.0


class Teacher(nn.Module):
    """What is trained together: two text encoders and the velocity transformer."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(tokenizer)
        self.text_encoder_2 = new_text_encoder(tokenizer)
        self.transformer = SD3Transformer2DModel(
            sample_size=LATENT_SHAPE[1],
            patch_size=2,
            in_channels=LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=6,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=256,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
        self._start_from_zero()

    def _start_from_zero(self) -> None:
        """Zero the gates and the output, so that every block begins as the identity (DiT)."""
        for name, layer in self.transformer.named_modules():
            if isinstance(layer, nn.Linear) and (".norm1" in name or name == "proj_out"):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, input_ids: Tensor, latents: Tensor, sigma: Tensor) -> Tensor:
        """Return the velocity ``(B, 8, 16, 16)`` for token ids ``(B, 24)`` and sigmas ``(B,)``."""
        encoded = [
            encoder(input_ids, output_hidden_states=True)
            for encoder in (self.text_encoder, self.text_encoder_2)
        ]
        velocity: Tensor = self.transformer(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=torch.cat([e.hidden_states[-2] for e in encoded], dim=-1),
            pooled_projections=torch.cat([e.text_embeds for e in encoded], dim=-1),
            return_dict=False,
        )[0]
        return velocity

    def pipeline(self, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
        """Assemble the pipeline, with no T5: call it with ``max_sequence_length=0``."""
        pipeline = StableDiffusion3Pipeline(
            transformer=self.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
            vae=vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            text_encoder_3=None,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            tokenizer_3=None,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def warm_start(teacher: Teacher, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Give ``teacher`` an older one's weights, whatever its VAE and number of subjects.

    Raises:
        DistillError: the folder is no pipeline of this architecture and vocabulary.
    """
    older = load_adapter(str(folder), max_sequence_length=0).pipeline
    if older.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise DistillError(f"{folder} reads captions with another vocabulary; train from the start")
    for name, part in teacher.named_children():
        try:
            part.load_state_dict(getattr(older, name).state_dict())
        except RuntimeError:
            raise DistillError(
                f"{folder} has another {name}; train from the start, without --from"
            ) from None


def _denoise_loss(
    teacher: nn.Module, ids: Tensor, latents: Tensor, generator: torch.Generator
) -> Losses:
    device = latents.device
    sigma = torch.randn(len(latents), generator=generator, device=device).sigmoid()
    noise = torch.randn(latents.shape, generator=generator, device=device)
    with torch.autocast(device.type, torch.bfloat16), attention_kernel(device.type):
        velocity = teacher(ids, noised(latents, sigma, noise), sigma)
    return {"loss": flow_matching_loss(velocity, latents, noise)}


def train_teacher(
    run: Path,
    plan: Plan,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    pool: LatentPool,
    pairs: float,
    older: Path | None = None,
) -> Teacher:
    """Train on the pool and return the averaged teacher.

    One subject a picture at first; pairs join at 40 % of the steps, with the share ``pairs``. What
    starts from an ``older`` teacher's pipeline has pairs at once.
    """
    torch.manual_seed(0)
    device = pool.ids.device
    empty = token_ids(tokenizer, [""]).to(device)
    teacher = Teacher(tokenizer)
    if older:
        warm_start(teacher, tokenizer, older)
    teacher.to(device)
    pairs_from = 0.0 if older else 0.4

    def loss_at(draw: int, count: int) -> Losses:
        generator = torch.Generator(device).manual_seed(draw)
        share = pairs * (draw * count >= pairs_from * plan.steps * plan.batch)
        is_pair = torch.rand(count, generator=generator, device=device) < share
        uniform = torch.rand(count, generator=generator, device=device)
        among_singles = (uniform * pool.singles).long()
        among_pairs = pool.singles + (uniform * (len(pool.ids) - pool.singles)).long()
        rows = torch.where(is_pair, among_pairs, among_singles)
        left_empty = torch.rand(count, generator=generator, device=device) < EMPTY_CAPTIONS
        ids = torch.where(left_empty[:, None], empty, pool.ids[rows])
        return _denoise_loss(teacher, ids, pool.latents[rows].float(), generator)

    def preview() -> Tensor:
        return sample_pictures(teacher.pipeline(vae, tokenizer), PREVIEW_PROMPTS, steps=14)

    train(plan, teacher, loss_at, run, preview)
    return teacher


@torch.no_grad()
def sample_pictures(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    steps: int = 28,
    guidance_scale: float = 3.5,
    seed: int = 0,
    output_type: str = "pt",
) -> Tensor:
    """Sample one picture a prompt, ``(B, 3, 64, 64)`` in [0, 1]; picture i has ``seed + i``.

    With ``output_type="latent"`` the latents instead, ``(B, 8, 16, 16)``, as the transformer has
    them.
    """
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    with torch.autocast(pipeline.device.type, torch.bfloat16):
        images: Tensor = pipeline(
            list(prompts),
            num_inference_steps=steps,
            sigmas=[1 - step / steps for step in range(steps)],
            guidance_scale=guidance_scale,
            max_sequence_length=0,
            generator=generators,
            output_type=output_type,
        ).images
    return images.float().cpu()
