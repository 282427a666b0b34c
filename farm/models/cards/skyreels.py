"""SkyReels-V2 diffusion forcing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard
from farm.models.cards.wan import wan_card


def skyreels_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """SkyReels-V2 diffusion forcing. Noise of 20 thousandths on the history is what its repository advises."""
    card = wan_card({"_class_name": "WanPipeline"}, configs)
    return replace(
        card, name="skyreels", family="skyreels", modes=("text", "image", "frames"), conditioning="context",
        contexts=("latents", "frames", "last_frame"), size=(960, 544), fps=24.0, fps_conditioned=True, guidance=6.0,
        chunk_frames=97, overlap_frames=17, settings={"denoise": (("addnoise_condition", 20),)},
        published=(("SkyReels-V2 1.3B", 5.7, 1.4, 0.13), ("SkyReels-V2 14B", 5.7, 14.3, 0.13)),
    )  # fmt: skip
