"""The built-in model: what it changes of the card of its family, Wan."""

from __future__ import annotations

from typing import Any

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
    "contexts": ("latents", "frames", "last_frame"), "modes": ("text", "image", "frames"), "middle_mark": "continued",
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
