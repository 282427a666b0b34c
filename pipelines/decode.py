"""The decode stage: latents to frames, losslessly coded. It loads the autoencoder, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load

from farm.task import Decode

from .families import wan
from .frames import write_lossless
from .load import best_device, load_component
from .stage import Artifact, Progress, Result, as_bytes


class Stage:
    def __init__(self, model: str, *, dtype: str = "float32") -> None:
        self.vae = load_component(model, "vae", dtype=dtype, device=best_device())

    @torch.no_grad()
    def run(self, request: Decode, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """`inputs` is the latents; returns the first `num_frames` frames as FFV1."""
        (latents,) = (load(as_bytes(i))["latents"] for i in inputs)
        video_THWC = as_uint8(wan.decode_latents(self.vae, latents)[0, :, : request.num_frames])
        progress.advance(1, 1)
        _, height, width, _ = video_THWC.shape
        return Result(write_lossless(video_THWC.numpy(), width_px=width, height_px=height))


def as_uint8(video_CTHW: torch.Tensor) -> torch.Tensor:
    """[-1, 1] floats to uint8 (T, H, W, C), rounded as diffusers' `output_type="pil"` does: (x * 255).round()."""
    unit = (video_CTHW.float().cpu() * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).contiguous()
