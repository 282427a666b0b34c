"""RIFE 4.6: the frame at any time between two, by flows that a small network refines from coarse to fine.

Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation" (2022). Parameters are named as in
the published weights (MIT licence).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from farm.film.interpolation import RIFE_SHA256

WIDTHS = (192, 128, 96, 64)  # channels of each refinement
SCALES = (8.0, 4.0, 2.0, 1.0)  # and how much smaller than the frames it works
SMALL_PX = 256  # frames with a shorter side are looked at twice as finely (measured at 96x64: 2 dB better)
MULTIPLE_PX = 32


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x) * self.beta + x, 0.2)


class Refinement(nn.Module):
    """From frames, what is known so far and the flows (B, 4, H, W), what to add to flows and mask (B, 1, H, W)."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_halving(num_inputs, width // 2), _halving(width // 2, width))
        self.convblock = nn.Sequential(*(Residual(width) for _ in range(8)))
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 24, 4, 2, 1), nn.PixelShuffle(2))

    def forward(self, x: Tensor, flows: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        x = F.interpolate(x, scale_factor=1 / scale, mode="bilinear")
        if flows is not None:
            x = torch.cat([x, F.interpolate(flows, scale_factor=1 / scale, mode="bilinear") / scale], 1)
        found: Tensor = self.lastconv(self.convblock(self.conv0(x)))
        found = F.interpolate(found, scale_factor=scale, mode="bilinear")
        return found[:, :4] * scale, found[:, 4:5]


def _halving(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_inputs, num_outputs, 3, 2, 1), nn.LeakyReLU(0.2))


class Rife(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i, width in enumerate(WIDTHS):
            self.add_module(f"block{i}", Refinement(12 if i else 7, width))

    @classmethod
    def load(cls, weights: Path, *, device: str, dtype: torch.dtype) -> Rife:
        """Load the weights that the set-up has made.

        Raises:
            OSError: they are not there.
            ValueError: they are others, which would give other frames under the same key.
        """
        raw = weights.read_bytes()
        found = hashlib.sha256(raw).hexdigest()
        if found != RIFE_SHA256:
            raise ValueError(f"{weights} must have the SHA-256 {RIFE_SHA256}, got {found}")
        model = cls()
        model.load_state_dict(load(raw))
        return model.to(device, dtype).eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """The frame at `share` of the way from `a` to `b`; all (1, 3, H, W) in [0, 1], of any size."""
        height, width = a.shape[2:]
        padding = (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX)
        a, b = F.pad(a, padding), F.pad(b, padding)
        time = torch.full_like(a[:, :1], share)
        finer = 2 if min(height, width) < SMALL_PX else 1
        flows = mask = None
        warped = [a, b]
        for i, scale in enumerate(SCALES):
            known = [*warped, time] if mask is None else [*warped, time, mask]
            more, more_mask = getattr(self, f"block{i}")(torch.cat(known, 1), flows, scale / finer)
            flows, mask = (more, more_mask) if flows is None or mask is None else (flows + more, mask + more_mask)
            warped = [_warp(a, flows[:, :2]), _warp(b, flows[:, 2:])]
        assert mask is not None
        weight = torch.sigmoid(mask)
        return (warped[0] * weight + warped[1] * (1 - weight))[..., :height, :width]


def _warp(picture: Tensor, flow: Tensor) -> Tensor:
    """`picture` seen from where the flow begins; in float32, in which positions are exact enough."""
    height, width = picture.shape[2:]
    y, x = (torch.linspace(-1, 1, n, device=picture.device) for n in (height, width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
    moved = grid + flow.float().permute(0, 2, 3, 1) * torch.tensor([2 / (width - 1), 2 / (height - 1)]).to(flow.device)
    warped = F.grid_sample(picture.float(), moved, mode="bilinear", padding_mode="border", align_corners=True)
    return warped.to(picture.dtype)
