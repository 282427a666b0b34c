"""HunyuanVideo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import CORE, TWO_TEXTS, Configs, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule
from farm.task import Settings

# Names of the original repository's layers (Tencent/HunyuanVideo, hyvideo/modules/models.py); it has queries, keys and
# values as one. The layer of its last norm is left out: diffusers has its rows in another order.
_DOUBLE, _SINGLE = "transformer_blocks.{n}", "single_transformer_blocks.{n}"
_REFINER, _ITS_BLOCK = "context_embedder", "context_embedder.token_refiner.refiner_blocks.{n}"
LORA_NAMES = (
    ("double_blocks.{n}.img_attn_qkv", tuple(f"{_DOUBLE}.attn.to_{x}" for x in "qkv")),
    ("double_blocks.{n}.txt_attn_qkv", tuple(f"{_DOUBLE}.attn.add_{x}_proj" for x in "qkv")),
    ("double_blocks.{n}.img_attn_proj", (f"{_DOUBLE}.attn.to_out.0",)),
    ("double_blocks.{n}.txt_attn_proj", (f"{_DOUBLE}.attn.to_add_out",)),
    ("double_blocks.{n}.img_mod.linear", (f"{_DOUBLE}.norm1.linear",)),
    ("double_blocks.{n}.txt_mod.linear", (f"{_DOUBLE}.norm1_context.linear",)),
    ("double_blocks.{n}.img_mlp.fc1", (f"{_DOUBLE}.ff.net.0.proj",)),
    ("double_blocks.{n}.img_mlp.fc2", (f"{_DOUBLE}.ff.net.2",)),
    ("double_blocks.{n}.txt_mlp.fc1", (f"{_DOUBLE}.ff_context.net.0.proj",)),
    ("double_blocks.{n}.txt_mlp.fc2", (f"{_DOUBLE}.ff_context.net.2",)),
    ("single_blocks.{n}.linear1", (*(f"{_SINGLE}.attn.to_{x}" for x in "qkv"), f"{_SINGLE}.proj_mlp")),
    ("single_blocks.{n}.linear2", (f"{_SINGLE}.proj_out",)),
    ("single_blocks.{n}.modulation.linear", (f"{_SINGLE}.norm.linear",)),
    ("txt_in.individual_token_refiner.blocks.{n}.self_attn_qkv", tuple(f"{_ITS_BLOCK}.attn.to_{x}" for x in "qkv")),
    ("txt_in.individual_token_refiner.blocks.{n}.self_attn_proj", (f"{_ITS_BLOCK}.attn.to_out.0",)),
    ("txt_in.individual_token_refiner.blocks.{n}.mlp.fc1", (f"{_ITS_BLOCK}.ff.net.0.proj",)),
    ("txt_in.individual_token_refiner.blocks.{n}.mlp.fc2", (f"{_ITS_BLOCK}.ff.net.2",)),
    ("txt_in.individual_token_refiner.blocks.{n}.adaLN_modulation.1", (f"{_ITS_BLOCK}.norm_out.linear",)),
    ("txt_in.input_embedder", (f"{_REFINER}.proj_in",)),
    ("txt_in.t_embedder.mlp.0", (f"{_REFINER}.time_text_embed.timestep_embedder.linear_1",)),
    ("txt_in.t_embedder.mlp.2", (f"{_REFINER}.time_text_embed.timestep_embedder.linear_2",)),
    ("txt_in.c_embedder.linear_1", (f"{_REFINER}.time_text_embed.text_embedder.linear_1",)),
    ("txt_in.c_embedder.linear_2", (f"{_REFINER}.time_text_embed.text_embedder.linear_2",)),
    ("img_in.proj", ("x_embedder.proj",)), ("final_layer.linear", ("proj_out",)),
    ("time_in.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    ("time_in.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    ("guidance_in.mlp.0", ("time_text_embed.guidance_embedder.linear_1",)),
    ("guidance_in.mlp.2", ("time_text_embed.guidance_embedder.linear_2",)),
    ("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    ("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
)  # fmt: skip
HUNYUAN = ModelCard(
    name="hunyuan", family="hunyuan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(1280, 720), fps=24.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=6.0, chunk_frames=129, overlap_frames=33,
    max_tokens=256, components=CORE | {"text": TWO_TEXTS}, is_guided=False, splits=("sequence",), splits_text="masked",
    lora_names=LORA_NAMES, lora_optional=("final_layer.adaLN_modulation",),
    published=(("HunyuanVideo", 8.2, 12.8, 0.25),),
)  # fmt: skip


def hunyuan_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """HunyuanVideo: guidance is embedded. Its image variants know two ways to be given the first frame."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial, way = vae.get("spatial_compression_ratio", 8), transformer.get("image_condition_type")
    told: Settings = (("way", way),)
    blocks = transformer.get("num_layers", 20) + transformer.get("num_single_layers", 40)
    side, channels = transformer.get("patch_size", 2), vae.get("latent_channels", 16)
    facts = dit_facts(
        transformer, heads=24, head_dim=128, blocks=blocks, channels=channels,
        patch=(transformer.get("patch_size_t", 1), side, side),
    )  # fmt: skip
    card = replace(
        HUNYUAN, **facts, rule=FrameRule(vae.get("temporal_compression_ratio", 4), 1), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=channels, settings={"denoise": told},
    )  # fmt: skip
    if index["_class_name"] == "HunyuanVideoPipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), guidance=1.0, blends=False, text_sees_image=True,
        conditioning="first", settings={"denoise": told, "text": told},
        components={**card.components, "text": (*TWO_TEXTS, "image_processor")},
        lead_latents=1 if way == "latent_concat" else 0, is_lead_decoded=True,
        splits=() if way == "token_replace" else card.splits,  # there blocks count the first frame's tokens
    )  # fmt: skip
