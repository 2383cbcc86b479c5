"""Weights under the names that the models' makers publish them by, in one file."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"

_SD3 = {
    r"^pos_embed\.pos_embed$": "pos_embed",
    r"^pos_embed\.proj\.": "x_embedder.proj.",
    r"^time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
    r"^time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
    r"^time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
    r"^time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^transformer_blocks\.(\d+)\.": r"joint_blocks.\1.x_block.",
    r"x_block\.attn\.(norm_added_|add_|to_add_out|qkv_context)": r"context_block.attn.\1",
    r"x_block\.(norm1|ff)_context": r"context_block.\1",
    r"norm_(added_)?([qk])\.": r"ln_\2.",
    r"attn(2?)\.(to_out\.0|to_add_out)": r"attn\1.proj",
    "qkv_context": "qkv",
    r"norm1\.linear": "adaLN_modulation.1",
    r"ff\.net\.0\.proj": "mlp.fc1",
    r"ff\.net\.2": "mlp.fc2",
}
_FLUX = {
    r"^x_embedder": "img_in",
    r"^context_embedder": "txt_in",
    r"^time_text_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
    r"^time_text_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
    r"^time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
    r"^time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
    r"^norm_out\.linear": "final_layer.adaLN_modulation.1",
    r"^proj_out": "final_layer.linear",
    r"^transformer_blocks\.": "double_blocks.",
    r"^single_transformer_blocks\.": "single_blocks.",
    r"norm1\.linear": "img_mod.lin",
    r"norm1_context\.linear": "txt_mod.lin",
    r"(single_blocks\.\d+\.)norm\.linear": r"\1modulation.lin",
    r"(single_blocks\.\d+\.)attn\.norm_q\.weight": r"\1norm.query_norm.scale",
    r"(single_blocks\.\d+\.)attn\.norm_k\.weight": r"\1norm.key_norm.scale",
    r"(single_blocks\.\d+\.)proj_out": r"\1linear2",
    r"(single_blocks\.\d+\.)attn\.qkv\.": r"\1linear1.",
    r"attn\.norm_q\.weight": "img_attn.norm.query_norm.scale",
    r"attn\.norm_k\.weight": "img_attn.norm.key_norm.scale",
    r"attn\.norm_added_q\.weight": "txt_attn.norm.query_norm.scale",
    r"attn\.norm_added_k\.weight": "txt_attn.norm.key_norm.scale",
    r"\.attn\.to_out\.0": ".img_attn.proj",
    r"\.attn\.to_add_out": ".txt_attn.proj",
    r"\.attn\.qkv_context": ".txt_attn.qkv",
    r"\.attn\.qkv\.": ".img_attn.qkv.",
    r"\.ff\.net\.0\.proj": ".img_mlp.0",
    r"\.ff\.net\.2": ".img_mlp.2",
    r"\.ff_context\.net\.0\.proj": ".txt_mlp.0",
    r"\.ff_context\.net\.2": ".txt_mlp.2",
}
_Z_IMAGE = {
    r"^all_final_layer\.2-1\.": "final_layer.",
    r"^all_x_embedder\.2-1\.": "x_embedder.",
    r"\.attention\.to_out\.0\.": ".attention.out.",
    r"\.attention\.norm_([qk])\.": r".attention.\1_norm.",
}
_VAE = {
    r"conv_norm_out": "norm_out",
    r"down_blocks\.(\d+)\.resnets\.": r"down.\1.block.",
    r"down_blocks\.(\d+)\.downsamplers\.0\.": r"down.\1.downsample.",
    r"up_blocks\.(\d+)\.resnets\.": r"up.\1.block.",
    r"up_blocks\.(\d+)\.upsamplers\.0\.": r"up.\1.upsample.",
    r"conv_shortcut": "nin_shortcut",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.to_([qkv])\.": r"attn_1.\1.",
    r"attn_1\.to_out\.0": "attn_1.proj_out",
}


def original(folder: Path) -> State:
    """The transformer of a StableDiffusion3Pipeline, FluxPipeline or ZImagePipeline."""
    state = load_file(folder / TRANSFORMER)
    if "pos_embed.pos_embed" in state:
        last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks"))
        return _renamed(_fused(state, ("norm_out", f"blocks.{last}.norm1_context")), _SD3)
    if any(".attention.to_q" in key for key in state):
        return _renamed(_fused(state, (), r"attention\.to_q\."), _Z_IMAGE)
    return _renamed(_fused(state, ("norm_out",)), _FLUX)


def original_vae(folder: Path) -> State:
    state = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    blocks = {key.split(".")[2] for key in state if key.startswith("decoder.up_blocks.")}
    found = {}
    for key, tensor in _renamed(state, _VAE).items():
        square = key.endswith("weight") and re.search(r"attn_1\.(q|k|v|proj_out)\.", key)
        key = re.sub(  # from the picture down
            r"decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{len(blocks) - 1 - int(m[1])}.", key
        )
        found[key] = tensor[..., None, None] if square else tensor
    return found


def text_encoder(folder: Path, name: str) -> State:
    return load_file(folder / name / "model.safetensors")


def save(path: Path, **parts: State) -> Path:
    """Write parts, each with what its name stands for in front; ``bare`` is nothing."""
    prefixes = {
        "bare": "",
        "transformer": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "clip_l": "text_encoders.clip_l.transformer.",
        "clip_g": "text_encoders.clip_g.transformer.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
    }
    weights = {prefixes[n] + key: w for n, part in parts.items() for key, w in part.items()}
    save_file({key: each.contiguous() for key, each in weights.items()}, path)
    return path


def _fused(
    state: State, swapped: tuple[str, ...], first: str = r"attn2?\.(to_q|add_q_proj)\."
) -> State:
    """With q, k and v in one matrix, and shift before scale where diffusers has it behind."""
    state = dict(state)
    for key in [key for key in state if re.search(first, key)]:
        parts = [key, key.replace("to_q", "to_k").replace("add_q", "add_k")]
        parts.append(key.replace("to_q", "to_v").replace("add_q", "add_v"))
        if "single_" in key:
            parts.append(key.replace("attn.to_q", "proj_mlp"))
        joined = torch.cat([state.pop(part) for part in parts])
        state[key.replace("add_q_proj", "qkv_context").replace("to_q", "qkv")] = joined
    for key in [key for key in state if any(each in key for each in swapped)]:
        scale, shift = state[key].chunk(2)
        state[key] = torch.cat([shift, scale])
    return state


def _renamed(state: State, names: dict[str, str]) -> State:
    found = {}
    for key, tensor in state.items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        found[key] = tensor
    return found
