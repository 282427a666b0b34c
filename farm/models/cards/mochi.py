"""Mochi."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule
from farm.task import Settings

MOCHI = ModelCard(
    name="mochi", family="mochi", modes=("text",), contexts=(), rule=FrameRule(6, 1), size=(848, 480), fps=30.0,
    multiple_px=16, spatial_factor=8, latent_channels=12, steps=64, guidance=4.5, chunk_frames=85, overlap_frames=19,
    max_tokens=256, min_steps=2, splits=("ulysses", "guidance"), published=(("Mochi 1", 4.8, 10.0, 0.46),),
)  # fmt: skip


def mochi_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Mochi 1; 85 frames, as in diffusers' example of it."""
    told: Settings = (("force_zeros_for_empty_prompt", bool(index.get("force_zeros_for_empty_prompt", False))),)
    transformer, channels = configs["transformer"], configs["vae"].get("latent_channels", 12)
    side = transformer.get("patch_size", 2)
    facts = dit_facts(
        transformer, heads=24, head_dim=128, blocks=transformer.get("num_layers", 48), channels=channels,
        patch=(1, side, side),
    )  # fmt: skip
    return replace(MOCHI, **facts, multiple_px=8 * side, latent_channels=channels, settings={"text": told})
