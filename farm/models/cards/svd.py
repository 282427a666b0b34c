"""Stable Video Diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard
from farm.models.frame_rule import FrameRule
from farm.task import Settings

SVD = ModelCard(
    name="svd", family="svd", modes=("image",), contexts=("last_frame",), rule=FrameRule(1, 0), size=(1024, 576),
    fps=7.0, fps_conditioned=True, multiple_px=64, spatial_factor=8, latent_channels=4, steps=25, guidance=3.0,
    chunk_frames=25, overlap_frames=1, max_tokens=0, conditioning="first", blends=False, draws_condition=True,
    takes_loras=False, tiles=False, published=(("Stable Video Diffusion", 0.6, 1.5, 0.1),),
    components={
        "embed": ("image_encoder", "feature_extractor"), "denoise": ("unet", "scheduler"), "vae": ("vae",)
    },
)  # fmt: skip


def svd_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Stable Video Diffusion: the stock pipeline's motion and noise, and 8 frames decoded at a time."""
    vae, unet = configs["vae"], configs["unet"]
    spatial = 2 ** (len(vae.get("block_out_channels", (128, 256, 512, 512))) - 1)
    noise: Settings = (("noise_aug_strength", 0.02),)
    return replace(
        SVD, spatial_factor=spatial, multiple_px=spatial * 2 ** (len(unet.get("block_out_channels", (1,) * 4)) - 1),
        chunk_frames=unet.get("num_frames", 25), latent_channels=vae.get("latent_channels", 4),
        settings={
            "vae": (*noise, ("decode_chunk_size", 8)),
            "denoise": (*noise, ("motion_bucket_id", 127), ("spatial", spatial)),
        },
    )  # fmt: skip
