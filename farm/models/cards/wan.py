"""Wan 2.1 and 2.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import CORE, Configs, Matrix, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule
from farm.task import Settings

# Latent channel to RGB, for previews without a VAE. Source: ComfyUI, comfy/latent_formats.py, class Wan21.
WAN21_RGB: Matrix = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip
# Names of the original repository's layers (Wan-AI, wan/modules/model.py and vace_model.py).
_BLOCK = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0", "cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj",
    "self_attn.norm_q": "attn1.norm_q", "self_attn.norm_k": "attn1.norm_k", "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k", "cross_attn.norm_k_img": "attn2.norm_added_k", "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "before_proj": "proj_in", "after_proj": "proj_out",
}  # fmt: skip
LORA_NAMES = tuple(
    (f"{blocks}.{{n}}.{original}", (f"{blocks}.{{n}}.{module}",))
    for blocks in ("blocks", "vace_blocks") for original, module in _BLOCK.items()
) + tuple(
    (original, (f"condition_embedder.{module}",)) for original, module in (
        ("time_embedding.0", "time_embedder.linear_1"), ("time_embedding.2", "time_embedder.linear_2"),
        ("text_embedding.0", "text_embedder.linear_1"), ("text_embedding.2", "text_embedder.linear_2"),
        ("time_projection.1", "time_proj"), ("img_emb.proj.0", "image_embedder.norm1"),
        ("img_emb.proj.1", "image_embedder.ff.net.0.proj"), ("img_emb.proj.3", "image_embedder.ff.net.2"),
        ("img_emb.proj.4", "image_embedder.norm2"),
    )
) + (("head.head", ("proj_out",)),)  # fmt: skip
WAN = ModelCard(
    name="wan", family="wan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(832, 480), fps=16.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=5.0, chunk_frames=81, overlap_frames=5,
    max_tokens=512, halo_latents=39, latent_rgb=WAN21_RGB, splits=("sequence", "guidance"), lora_names=LORA_NAMES,
    lora_optional=("k_img", "v_img", "img_emb", "add_k_proj", "add_v_proj", "norm_added_k", "image_embedder"),
    published=(
        ("Wan2.1 1.3B", 5.7, 1.4, 0.13), ("Wan2.1 14B", 5.7, 14.3, 0.13), ("Wan2.2 A14B", 5.7, 28.6, 0.13),
        ("Wan2.2 TI2V 5B", 5.7, 5.0, 0.7),
    ),
)  # fmt: skip


def wan_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Wan 2.1 and 2.2: text, image (and last image), VACE, two experts, timesteps per token.

    Wan2.2's official guidance (its repository's configs): T2V-A14B 4.0 for high noise and 3.0 for low noise, I2V-A14B
    3.5 for both; TI2V-5B is the checkpoint with `expand_timesteps`: 24 fps, 121 frames, 1280x704.
    """
    kind, vae, transformer = index["_class_name"], configs["vae"], configs["transformer"]
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    patch = transformer.get("patch_size", (1, 2, 2))
    boundary, per_token = index.get("boundary_ratio"), bool(index.get("expand_timesteps", False))
    if boundary is not None and not 0 <= float(boundary) <= 1:
        raise ValueError(f"boundary_ratio must be from 0 to 1, got {boundary}")
    if min(int(spatial), int(temporal)) < 1:
        raise ValueError(f"scale factors must be at least 1, got {spatial} and {temporal}")
    settings: dict[str, Settings] = {"denoise": (("boundary_ratio", boundary), ("expand_timesteps", per_token))}
    channels = vae.get("z_dim", 16)
    heads, dim = transformer.get("num_attention_heads", 40), transformer.get("attention_head_dim", 128)
    facts = dit_facts(
        transformer, heads=40, head_dim=128, blocks=transformer.get("num_layers", 40), channels=channels,
        patch=tuple(patch), mlp=transformer.get("ffn_dim", 13824) / (heads * dim), attentions=2,
    )  # fmt: skip
    card = replace(
        WAN,
        **facts,
        rule=FrameRule(temporal, 1),
        spatial_factor=spatial,
        multiple_px=spatial * max(patch[1], patch[2]),
        latent_channels=channels,
        settings=settings,
        halo_latents=wan_halo_latents(vae),
        latent_rgb=WAN21_RGB if channels == 16 else (),
    )
    if boundary is not None:
        high, low = (3.5, 3.5) if kind == "WanImageToVideoPipeline" else (4.0, 3.0)
        denoise = ("transformer", "transformer_2", "scheduler")
        card = replace(card, steps=40, guidance=high, guidance_low=low, components=CORE | {"denoise": denoise})
    if per_token:  # the first latent frames may be given; trained with one
        card = replace(card, size=(1280, 704), fps=24.0, chunk_frames=121, modes=("text", "image", "frames"),
                       contexts=("frames", "latents", "last_frame"), conditioning="context")  # fmt: skip
    elif kind == "WanImageToVideoPipeline":
        embed = {"embed": ("image_processor", "image_encoder")} if transformer.get("image_dim") else {}
        modes: tuple[str, ...] = ("image", "first_last", "frames")
        contexts: tuple[str, ...] = ("frames", "last_frame")
        if transformer.get("pos_embed_seq_len"):  # embeddings of two pictures, never of one
            modes, contexts = ("first_last",), ()
        elif embed:
            modes = ("image", "frames")
        card = replace(
            card, modes=modes, contexts=contexts, conditioning="whole",
            blends=False, components={**card.components, **embed},
            settings=settings | {"vae": (("condition", "mask"),)},
        )  # fmt: skip
    elif kind == "WanVACEPipeline":
        card = replace(
            card, modes=("text", "image", "first_last", "frames", "reference"), contexts=("frames", "last_frame"),
            conditioning="whole", settings=settings | {"vae": (("condition", "vace"), ("patch", patch[1]))},
        )  # fmt: skip
    return card


def wan_halo_latents(vae: Mapping[str, Any]) -> int:
    """How many latent frames the causal decoder of an AutoencoderKLWan looks back, rounded up, plus one.

    Every causal convolution of 3 looks two frames back, at the rate of its level: conv_in and two residual blocks in
    the middle at the latent rate, num_res_blocks + 1 blocks a level with two convolutions each, one more in each
    temporal upsampling, and conv_out. Wan2.1 (2 blocks, 4 levels, temporal upsampling after two): 37.5.
    """
    blocks, levels = int(vae.get("num_res_blocks", 2)), len(vae.get("dim_mult", (1, 2, 4, 4)))
    doubles = list(reversed(vae.get("temperal_downsample", (False, True, True))))
    rate, lookback = 1, 2.0 + 8.0
    for level in range(levels):
        lookback += 4 * (blocks + 1) / rate
        if level < len(doubles) and doubles[level]:
            lookback += 2 / rate
            rate *= 2
    return math.ceil(lookback + 2 / rate) + 1
