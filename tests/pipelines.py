"""Tiny random pipelines of the real classes, with tokenizers made offline."""

import json
from math import log
from pathlib import Path

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TEXT_LENGTH = 24
PICTURE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
# Of Qwen3's own template what one message of a user meets.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
PROMPTS = ["a fox in the snow", "an owl", "two cats on a red background", "a dog", "a pig"]


def tiny_sd3(
    folder: Path | str, seed: int = 0, t5: bool = False, dual_attention: bool = False
) -> Path:
    """Save a random StableDiffusion3Pipeline: 64x64 px, latents 4x16x16, 64 image tokens.

    With ``dual_attention`` its first block is of the kind of SD3.5-Medium's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                caption_projection_dim=32,
                joint_attention_dim=72,
                pooled_projection_dim=64,
                pos_embed_max_size=24,
                qk_norm="rms_norm",
                dual_attention_layers=(0,) if dual_attention else (),
            ),
            # The default shift of 1 would hide shift mistakes.
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(channels=4, scaling_factor=1.5035, shift_factor=0.0609),
            text_encoder=_clip(),
            tokenizer=_clip_tokenizer("<|endoftext|>"),
            text_encoder_2=_clip(),
            tokenizer_2=_clip_tokenizer("!"),  # as in SD3-Medium: the second one pads with id 0
            text_encoder_3=_t5() if t5 else None,
            tokenizer_3=_t5_tokenizer() if t5 else None,
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_longcat(folder: Path | str, seed: int = 0) -> Path:
    """Save a random LongCatImagePipeline: 64x64 px, latents 16x16x16, 64 image and 512 text tokens.

    Load it with ``text_processor=None``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = LongCatImagePipeline(
            transformer=LongCatImageTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=[4, 4, 8],
            ),
            # The constant shift is not LongCat's, and must not be looked at.
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0
            ),
            vae=_vae(channels=16, scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_qwen(),
            tokenizer=_qwen_tokenizer(),
            text_processor=None,
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_longcat_edit(folder: Path | str, seed: int = 0) -> Path:
    """Save a random LongCatImageEditPipeline, whose text encoder sees also small pictures."""
    folder = tiny_longcat(folder, seed)
    encoder = _qwen(layers=2, picture=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for weight in encoder.parameters():
            nn.init.normal_(weight, std=0.2)
    encoder.save_pretrained(folder / "text_encoder")
    _qwen_tokenizer(more=PICTURE_TOKENS).save_pretrained(folder / "tokenizer")
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2, "longest_edge": 512**2})
    processor.save_pretrained(folder / "text_processor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "LongCatImageEditPipeline"}
    index |= {"text_processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_auraflow(folder: Path | str, seed: int = 0) -> Path:
    """Save a random AuraFlowPipeline: 64x64 px, latents 4x16x16, 64 image tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = AuraFlowPipeline(
            transformer=AuraFlowTransformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_mmdit_layers=1,
                num_single_dit_layers=1,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=24,
                caption_projection_dim=32,
                pos_embed_max_size=256,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
            vae=_vae(channels=4, scaling_factor=0.13025, shift_factor=None),
            text_encoder=UMT5EncoderModel(
                UMT5Config(
                    vocab_size=30,
                    d_model=24,
                    d_kv=8,
                    d_ff=37,
                    num_layers=2,
                    num_heads=3,
                    dropout_rate=0.0,
                )
            ).eval(),
            tokenizer=_t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_flux(folder: Path | str, seed: int = 0, guidance: bool = False) -> Path:
    """Save a random FluxPipeline: 64x64 px, latents 16x16x16, 64 image tokens.

    With ``guidance`` it is of the kind of FLUX.1-dev, otherwise of schnell's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=72,
                pooled_projection_dim=32,
                guidance_embeds=guidance,
                axes_dims_rope=[4, 4, 8],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=guidance, base_shift=0.5, max_shift=1.15, shift=1.0
            ),
            vae=_vae(channels=16, scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=CLIPTextModel(_clip_config()).eval(),
            tokenizer=_clip_tokenizer("<|endoftext|>"),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_klein(folder: Path | str, seed: int = 0) -> Path:
    """Save a random Flux2KleinPipeline: 64x64 px, latents 16x8x8, 64 image tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=64,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        # As trained; the initial 0 and 1 would hide a statistic that is left out.
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        pipeline = Flux2KleinPipeline(
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * 16,
                guidance_embeds=False,
                axes_dims_rope=[4, 4, 4, 4],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=vae,
            text_encoder=_qwen3(layers=28),
            tokenizer=_qwen_tokenizer(CHAT),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_qwen_image(folder: Path | str, seed: int = 0) -> Path:
    """Save a random QwenImagePipeline: 64x64 px, latents 4x16x16, 64 image tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=[4, 4, 8],
            ),
            # Of the Lightning LoRAs: a shift of 3 at every size.
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=log(3), max_shift=log(3)
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[-0.7, 0.1, 0.9, 0.4],
                latents_std=[2.8, 1.4, 0.7, 1.1],
            ),
            text_encoder=_qwen(),
            tokenizer=_qwen_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return Path(folder)


def tiny_z_image(folder: Path | str, seed: int = 0) -> Path:
    """Save a random ZImagePipeline: 64x64 px, latents 4x16x16, 64 image tokens.

    As published, its index names a language model without the head that its files have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 4, 8],
            axes_lens=[1024, 64, 64],
        )
        # As trained; zeros would hide which tokens fill up.
        nn.init.normal_(transformer.x_pad_token)
        nn.init.normal_(transformer.cap_pad_token)
        pipeline = ZImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(channels=4, scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_qwen3(layers=3),
            tokenizer=_qwen_tokenizer(CHAT),
        )
    pipeline.save_pretrained(folder)
    index = json.loads((Path(folder) / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen3Model"]
    (Path(folder) / "model_index.json").write_text(json.dumps(index))
    return Path(folder)


def tiny_decoder(
    folder: Path | str, latent_channels: int = 4, blocks: tuple[int, ...] = (1, 1, 0)
) -> Path:
    """An AutoencoderTiny for ``tiny_sd3``'s latents, or for others."""
    torch.manual_seed(1)
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * len(blocks),
        decoder_block_out_channels=(8,) * len(blocks),
        num_encoder_blocks=(0,) * len(blocks),
        num_decoder_blocks=blocks,
        latent_channels=latent_channels,
    ).save_pretrained(folder)
    return Path(folder)


def _vae(channels: int, scaling_factor: float, shift_factor: float | None) -> AutoencoderKL:
    """Four pixels a side to a latent one."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def _clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Byte-level BPE without merges; ids 0-255 inside a word, 256-511 at its end."""
    symbols = sorted(ByteLevel.alphabet())
    vocab = [*symbols, *(f"{s}</w>" for s in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=[],
        pad_token=pad_token,
        model_max_length=TEXT_LENGTH,
    )


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=32,
        hidden_act="gelu",
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def _clip() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_clip_config()).eval()


def _t5_tokenizer() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(c), -3.0) for c in range(ord("a"), ord("z") + 1)]
    return T5TokenizerFast(vocab=pieces + letters, extra_ids=0, model_max_length=TEXT_LENGTH)


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=30, d_model=72, d_kv=8, d_ff=37, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return T5EncoderModel(config).eval()


def _qwen_tokenizer(chat_template: str | None = None, more: tuple[str, ...] = ()) -> Qwen2Tokenizer:
    """Byte-level BPE without merges; pads with id 256."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    vocab = [*sorted(ByteLevel.alphabet()), *special]
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=[],
        extra_special_tokens=special[1:],
        chat_template=chat_template,
    )


def _qwen3(layers: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=256,
    )
    return Qwen3ForCausalLM(config).eval()


def _qwen(layers: int = 1, picture: bool = False) -> Qwen2_5_VLForConditionalGeneration:
    """With ``layers`` of its vision tower; with tokens for a ``picture``."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 259 + 3 * picture,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "rope_theta": 10000.0,
            },
            "bos_token_id": 256,
            "eos_token_id": 258,
            "pad_token_id": 256,
        },
        vision_config={
            "depth": layers,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [layers - 1],
        },
        image_token_id=261 if picture else 0,
        video_token_id=1,
        vision_start_token_id=259 if picture else 2,
        vision_end_token_id=260 if picture else 3,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
