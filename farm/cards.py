"""Model cards: what the planner must know of a model where torch is not installed.

A card is the data of a family (found from `_class_name` in model_index.json) with what the checkpoint's own JSON files
say filled in. Cards hold facts only; the tensors' side of a family is in pipelines/families/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .chunks import FrameRule

Matrix = tuple[tuple[float, ...], ...]

# Latent channel to RGB, for previews without a VAE. Source: ComfyUI, comfy/latent_formats.py, class Wan21.
WAN21_RGB: Matrix = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
    """What a model can do and what it expects."""

    name: str
    family: str
    modes: tuple[str, ...]  # text | image | first_last | frames | reference
    contexts: tuple[str, ...]  # kinds of context, strongest first: latents | frames | last_frame
    rule: FrameRule
    size: tuple[int, int]  # native width and height, px
    fps: float
    fps_conditioned: bool  # whether the model is told the frame rate
    multiple_px: int  # width and height must be multiples of it: VAE factor x patch
    spatial_factor: int
    latent_channels: int
    steps: int
    guidance: float
    guidance_low: float | None  # of the low-noise expert; None where there is one transformer
    boundary_ratio: float | None
    per_token_timesteps: bool
    chunk_frames: int
    overlap_frames: int
    max_tokens: int  # of a prompt
    halo_latents: int  # latent frames after which the decoder has forgotten what came before: its receptive field
    vocabulary: tuple[str, ...] = ()  # all words that a model with a closed vocabulary knows
    middle_mark: str = ""  # ends a prompt where the chunk lies in the middle of a stream
    latent_rgb: Matrix = ()  # one row a channel, then the bias

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """The components that each stage loads."""
        experts = ("transformer", "transformer_2") if self.boundary_ratio is not None else ("transformer",)
        return {"encode": ("tokenizer", "text_encoder"), "denoise": (*experts, "scheduler"), "decode": ("vae",)}

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that a model with a closed vocabulary does not know."""
        words = re.findall(r"\w+", prompt.lower()) if self.vocabulary else []
        return [w for w in dict.fromkeys(words) if w not in self.vocabulary]


WAN = ModelCard(
    name="wan", family="wan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(832, 480), fps=16.0,
    fps_conditioned=False, multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=5.0,
    guidance_low=None, boundary_ratio=None, per_token_timesteps=False, chunk_frames=81, overlap_frames=5,
    max_tokens=512, halo_latents=39, latent_rgb=WAN21_RGB,
)  # fmt: skip

FAMILIES: dict[str, ModelCard] = {"WanPipeline": WAN}

BUILTIN_WORDS = (
    "red orange yellow green blue purple white ball cube cone car rolls left right bounces floats spins stands "
    "grass sand snow road day sunset night camera pans zooms in a an the over on at continued "
    "crimson scarlet gold golden violet azure sphere box block pyramid automobile vehicle roll rolling drives "
    "bounce bouncing jumps float floating hovers spin spinning turns stand standing rests lawn meadow desert beach "
    "street asphalt noon daylight dusk evening midnight pan panning zoom zooming"
)

# What the built-in model changes of its family's card.
BUILTIN: dict[str, Any] = {
    "name": "builtin", "size": (96, 64), "fps": 8.0, "steps": 20, "guidance": 3.0, "chunk_frames": 17, "max_tokens": 32,
    "contexts": ("latents", "frames", "last_frame"), "middle_mark": "continued",
    "vocabulary": tuple(BUILTIN_WORDS.split()),
    # least squares over 60 held-out clips of its autoencoder, with noise of 0.5 on the latents, as they are noisy when
    # shown; explains 57 % of the variance of 8x8 blocks
    "latent_rgb": (
        (-0.048, -0.024, 0.003), (-0.014, -0.025, -0.045), (-0.113, -0.092, -0.059), (-0.052, -0.06, -0.065),
        (0.137, 0.137, 0.132), (0.076, 0.053, 0.045), (-0.004, -0.014, -0.005), (0.017, 0.002, 0.015),
        (-0.047, -0.029, -0.028), (0.035, 0.009, -0.018), (-0.1, -0.075, -0.024), (-0.051, -0.022, 0.012),
        (-0.064, -0.069, -0.104), (-0.043, -0.031, -0.035), (0.085, 0.05, 0.02), (-0.059, -0.049, -0.029),
        (-0.153, -0.204, -0.14),
    ),
}  # fmt: skip


def wan_card(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> ModelCard:
    """Fill in the Wan card from model_index.json and the components' config.json.

    Wan2.2's official guidance (its repository's configs): T2V-A14B 4.0 for high noise and 3.0 for low noise; TI2V-5B is
    the checkpoint with `expand_timesteps`: 24 fps, 121 frames, 1280x704.
    """
    vae, transformer = configs["vae"], configs["transformer"]
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    patch = transformer.get("patch_size", (1, 2, 2))
    boundary = index.get("boundary_ratio")
    if boundary is not None and not 0 <= float(boundary) <= 1:
        raise ValueError(f"boundary_ratio must be from 0 to 1, got {boundary}")
    if min(int(spatial), int(temporal)) < 1:
        raise ValueError(f"scale factors must be at least 1, got {spatial} and {temporal}")
    card = replace(
        WAN,
        rule=FrameRule(temporal, 1),
        spatial_factor=spatial,
        multiple_px=spatial * max(patch[1], patch[2]),
        latent_channels=transformer.get("in_channels", 16),
        boundary_ratio=boundary,
        per_token_timesteps=bool(index.get("expand_timesteps", False)),
        halo_latents=wan_halo_latents(vae),
        latent_rgb=WAN21_RGB if transformer.get("in_channels", 16) == 16 else (),
    )
    if boundary is not None:
        card = replace(card, steps=40, guidance=4.0, guidance_low=3.0)
    if card.per_token_timesteps:
        modes, contexts = ("text", "image"), ("last_frame",)  # the first latent frame may be given
        card = replace(card, size=(1280, 704), fps=24.0, chunk_frames=121, modes=modes, contexts=contexts)
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
