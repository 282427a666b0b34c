"""The decode stage: a stretch of a stream of latents to frames, losslessly coded. It loads the autoencoder alone.

A causal decoder carries a cache from latent frame to latent frame. It stays here between tasks: a stretch that goes on
where an earlier one ended needs no more than its own latent frames. Where that cache is not here (another replica, a
restart) the halo is decoded first and thrown away; it is as long as the decoder looks back, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load

from farm.film.looks import Look
from farm.task import Decode
from pipelines.family import Family, family_of
from pipelines.finite import check_finite
from pipelines.frames import write_lossless
from pipelines.load import best_device, load_component, resident
from pipelines.parallel import Gang
from pipelines.stage import Artifact, Progress, Result, as_bytes
from pipelines.tiles import decode_together

MAX_CACHE_BYTES = 4 * 2**30  # of the streams that are kept besides the last one


class Stage:
    def __init__(
        self, model: str, components: Sequence[str] = ("vae",), *, dtype: str = "float32", offload: str = "none",
        tiling: bool = False, slicing: bool = False, gang: Gang | None = None,
    ) -> None:  # fmt: skip
        """`gang`: other ranks that do the same, over which tiles are spread; the frames are rank 0's."""
        (name,) = components
        self.gang = gang
        self.device, self.offload, self.is_tiled = best_device(), offload, tiling
        self.vae = load_component(model, name, dtype=dtype, device=self.device, offload=offload)
        if tiling:
            self.vae.enable_tiling()
        if slicing:
            self.vae.enable_slicing()
        self.streams: list[Any] = []  # least recently used first

    @torch.no_grad()
    def run(self, request: Decode, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """`inputs` are safetensors with `latents`, as `request.spans` says; returns `num_frames` frames as FFV1."""
        parts = [load(as_bytes(i))["latents"] for i in inputs]
        spans = zip(parts, request.spans, strict=True)
        stretch = torch.cat([p[:, :, skip : skip + take] for p, (skip, take) in spans], dim=2)
        family = family_of(request.family)
        with resident([self.vae], device=self.device, offload=self.offload):
            if not family.streams or self.is_tiled:  # tiles lie in space, each through all frames
                video_BCTHW = self._decode_whole(family, request, stretch)
                progress.advance(1, 1)
                if video_BCTHW is None:
                    return Result(b"")
                video_CTHW = video_BCTHW[0]
                if request.halo_latents:  # the first latent frame stands for one frame, the others for as many each
                    each = (video_CTHW.shape[1] - 1) // (stretch.shape[2] - 1)
                    video_CTHW = video_CTHW[:, -each * (stretch.shape[2] - request.halo_latents) :]
                self._check(video_CTHW)
                frames = [as_uint8(video_CTHW)]
            else:
                frames = self._decode_on(family, request, stretch, progress)
        first = request.skip_frames
        video_THWC = torch.cat(frames)[first : first + request.num_frames]
        _, height, width, _ = video_THWC.shape
        data = write_lossless(video_THWC.numpy(), width_px=width, height_px=height)
        return Result(data, {"look": asdict(look_of(video_THWC))})

    def _decode_whole(self, family: Family, request: Decode, stretch: torch.Tensor) -> torch.Tensor | None:
        """All frames at once; None on ranks of a gang but the first."""
        if self.gang is None:
            return family.decode(self.vae, request, stretch)
        return decode_together(lambda: family.decode(self.vae, request, stretch), self.vae, self.gang)

    def _decode_on(
        self, family: Family, request: Decode, stretch: torch.Tensor, progress: Progress
    ) -> list[torch.Tensor]:
        """The frames of a stretch after its halo, by the stream that has decoded this halo last, or by a new one."""
        total, halo = stretch.shape[2], request.halo_latents
        stream = self._stream_after(family, stretch[:, :, :halo], is_start=request.is_start)
        frames = []
        begin = halo if stream.position else 0
        for i in range(begin, total):
            made_CTHW = stream.decode_next(stretch[:, :, i : i + 1])
            self._check(made_CTHW)
            if i >= halo:
                frames.append(as_uint8(made_CTHW))
            progress.advance(i + 1 - begin, total - begin)
        self._keep(stream)
        return frames

    def _check(self, video_CTHW: torch.Tensor) -> None:
        check_finite({"frames": video_CTHW}, "a frame that decode has made", {"vae": self.vae})

    def _stream_after(self, family: Family, halo: torch.Tensor, *, is_start: bool) -> Any:
        """The stream that has decoded exactly this halo last, or a new one that has decoded nothing."""
        for stream in self.streams if halo.shape[2] else []:
            if stream.ends_with(halo, is_whole=is_start):
                self.streams.remove(stream)
                return stream
        return family.decoder(self.vae)

    def _keep(self, stream: Any) -> None:
        while sum(s.num_bytes for s in self.streams) > MAX_CACHE_BYTES:
            self.streams.pop(0)
        self.streams.append(stream)


def look_of(video_THWC: torch.Tensor) -> Look:
    """What can be seen, by every fourth pixel of every fourth row."""
    small = video_THWC[:, ::4, ::4].float()
    moves = (small[1:] - small[:-1]).abs().mean((1, 2, 3))
    return Look(
        brightness=float(small.mean((1, 2, 3)).max()), detail=float(small.std((1, 2), correction=0).mean(1).max()),
        motion=float(moves.max()) if len(moves) else None,
    )  # fmt: skip


def as_uint8(video_CTHW: torch.Tensor) -> torch.Tensor:
    """[-1, 1] floats to uint8 (T, H, W, C), rounded as diffusers' `output_type="pil"` does: (x * 255).round()."""
    unit = (video_CTHW.float().cpu() * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(1, 2, 3, 0) * 255).round().to(torch.uint8).contiguous()
