"""HunyuanVideo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import CORE, TWO_TEXTS, Configs, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule
from farm.task import Settings

HUNYUAN = ModelCard(
    name="hunyuan", family="hunyuan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(1280, 720), fps=24.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=6.0, chunk_frames=129, overlap_frames=33,
    max_tokens=256, components=CORE | {"text": TWO_TEXTS}, is_guided=False, splits=("sequence",), splits_text="masked",
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
