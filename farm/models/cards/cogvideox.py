"""CogVideoX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule

COGVIDEOX = ModelCard(
    name="cogvideox", family="cogvideox", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(720, 480), fps=8.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=6.0, chunk_frames=49, overlap_frames=17,
    max_tokens=226, splits=("sequence", "guidance"), splits_text="fixed",
    published=(("CogVideoX 2B", 4.8, 1.7, 0.22), ("CogVideoX 5B", 4.8, 5.6, 0.22)),
)  # fmt: skip


def cogvideox_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """CogVideoX 2B and 5B (49 frames at 8 fps), and 1.5 (81 frames at 16 fps), which takes latent frames in pairs."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial = 2 ** (len(vae.get("block_out_channels", (128, 256, 256, 512))) - 1)
    temporal, is_paired = vae.get("temporal_compression_ratio", 4), transformer.get("patch_size_t") is not None
    width, height = transformer.get("sample_width", 90) * spatial, transformer.get("sample_height", 60) * spatial
    side, channels = transformer.get("patch_size", 2), vae.get("latent_channels", 16)
    facts = dit_facts(
        transformer, heads=30, head_dim=64, blocks=transformer.get("num_layers", 30), channels=channels,
        patch=(transformer.get("patch_size_t") or 1, side, side),
    )  # fmt: skip
    card = replace(
        COGVIDEOX, **facts, rule=FrameRule(temporal, 1), size=(width, height), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=channels,
        chunk_frames=81 if is_paired else 49, fps=16.0 if is_paired else 8.0, even_latents=is_paired,
        blends=not is_paired, max_tokens=transformer.get("max_text_seq_length", 226),
        fixed_size=bool(transformer.get("use_learned_positional_embeddings", False)),
    )  # fmt: skip
    if index["_class_name"] == "CogVideoXPipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), blends=False, conditioning="first", draws_condition=True
    )  # fmt: skip
