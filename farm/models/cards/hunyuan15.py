"""HunyuanVideo-1.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard, dit_facts
from farm.models.cards.hunyuan import HUNYUAN
from farm.models.frame_rule import FrameRule

HUNYUAN15 = replace(
    HUNYUAN, name="hunyuan15", family="hunyuan15", size=(848, 480), chunk_frames=121, spatial_factor=16,
    latent_channels=32, max_tokens=1000, is_guided=True, takes_loras=False, splits=("ulysses",), splits_text="",
    components={**HUNYUAN.components, "denoise": ("transformer", "scheduler", "guider")},
    published=(("HunyuanVideo-1.5", 8.0, 8.3, 1.2),),
)  # fmt: skip


def hunyuan15_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """HunyuanVideo-1.5; its own pipeline takes sizes near 16:9 of `target_size` squared pixels."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial, side = vae.get("spatial_compression_ratio", 16), transformer.get("patch_size", 1)
    facts = dit_facts(
        transformer, heads=16, head_dim=128, blocks=transformer.get("num_layers", 54),
        channels=transformer.get("out_channels", 32), patch=(transformer.get("patch_size_t", 1), side, side),
    )  # fmt: skip
    card = replace(
        HUNYUAN15, **facts, rule=FrameRule(vae.get("temporal_compression_ratio", 4), 1), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=vae.get("latent_channels", 32),
        guidance=configs["guider"].get("guidance_scale", HUNYUAN15.guidance),
    )  # fmt: skip
    if index["_class_name"] == "HunyuanVideo15Pipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), blends=False, conditioning="first",
        components={**card.components, "embed": ("image_encoder", "feature_extractor")},
    )  # fmt: skip
