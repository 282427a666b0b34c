"""The encode stage: prompts to embeddings, pictures and frames to latents. It loads what its tasks need, no more."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from functools import singledispatchmethod
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

from farm.task import EncodeFrames, EncodeImage, EncodeText

from .families import wan
from .frames import Frame, read_lossless
from .load import best_device, load_component
from .stage import Artifact, Progress, Result, as_bytes


class Stage:
    """Made with the tokenizer and the text encoder for prompts, with the autoencoder for pictures and frames."""

    def __init__(
        self, model: str, components: Sequence[str] = ("tokenizer", "text_encoder"), *, dtype: str = "float32",
        offload: bool = False,
    ) -> None:  # fmt: skip
        device = best_device()
        self.components = {c: load_component(model, c, dtype=dtype, device=device, offload=offload) for c in components}

    @torch.no_grad()
    def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """Returns safetensors: `embeds` (1, max_tokens, dim) of a prompt, or `latents` (1, C, F, H, W)."""
        made = self._encode(request, inputs)
        progress.advance(1, 1)
        return Result(save({k: v.cpu().contiguous() for k, v in made.items()}))

    @singledispatchmethod
    def _encode(self, request: Any, inputs: Sequence[Artifact]) -> dict[str, torch.Tensor]:
        raise TypeError(f"encode takes EncodeText, EncodeImage or EncodeFrames, got {type(request).__name__}")

    @_encode.register
    def _(self, request: EncodeText, inputs: Sequence[Artifact]) -> dict[str, torch.Tensor]:
        return {"embeds": wan.encode_prompt(self.components, request.prompt, max_tokens=request.max_tokens)}

    @_encode.register
    def _(self, request: EncodeImage, inputs: Sequence[Artifact]) -> dict[str, torch.Tensor]:
        frame = fit_picture(as_bytes(inputs[0]), request)
        return {"latents": wan.encode_frames(self.components["vae"], as_video([frame]))}

    @_encode.register
    def _(self, request: EncodeFrames, inputs: Sequence[Artifact]) -> dict[str, torch.Tensor]:
        last: deque[Frame] = deque(maxlen=request.num_frames)
        for artifact in inputs:
            last.extend(read_lossless(as_bytes(artifact)))
        return {"latents": wan.encode_frames(self.components["vae"], as_video(list(last)))}


def fit_picture(data: bytes, request: EncodeImage) -> Frame:
    """A picture at the film's size, RGB, turned as its EXIF says; resized by Lanczos, as stock diffusers does."""
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    size = (request.width_px, request.height_px)
    if request.fit == "cover":
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif request.fit == "contain":
        picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS)
    elif picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8)


def as_video(frames: Sequence[Frame]) -> torch.Tensor:
    """uint8 frames (H, W, C) to (1, 3, T, H, W) in [-1, 1], with the arithmetic of diffusers' VideoProcessor."""
    video_THWC = torch.from_numpy(np.stack(frames).astype(np.float32) / 255.0)
    return 2.0 * video_THWC.permute(3, 0, 1, 2)[None] - 1.0
