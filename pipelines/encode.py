"""The encode stage: prompts, pictures and frames to what a model takes of them. It loads what its tasks need."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

from farm.task import EmbedFrames, EncodeFrames, EncodeText, Known
from pipelines.family import Pictures, Tensors, family_of
from pipelines.finite import check_finite
from pipelines.frames import Frame, read_lossless
from pipelines.load import best_device, load_component, resident
from pipelines.parallel import Gang
from pipelines.prompts import fitted
from pipelines.stage import Artifact, Progress, Result, as_bytes

PRECISE = ("vae", "image_encoder")  # small, and in float32 in diffusers' examples of Wan whatever the rest is in


class Stage:
    """Made with text encoders and their tokenizers, with an image encoder, or with the autoencoder."""

    def __init__(
        self, model: str, components: Sequence[str] = ("tokenizer", "text_encoder"), *, dtype: str = "float32",
        offload: str = "none", quantize: str = "", gang: Gang | None = None,
    ) -> None:  # fmt: skip
        """`gang`: other ranks that do the same, over which the weights of text encoders are spread."""
        self.device, self.offload = best_device(), offload
        self.components = {
            c: load_component(
                model, c, dtype="float32" if c in PRECISE else dtype, device=self.device, offload=offload,
                quantize=quantize if c.startswith("text_encoder") else "",
                is_sharded=gang is not None and c.startswith("text_encoder"),
            )
            for c in components
        }  # fmt: skip

    @torch.no_grad()
    def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """Returns safetensors: `embeds` (1, tokens, dim) of a prompt and its kin, `latents` (1, C, F, H, W) ..."""
        cut: dict[str, Any] = {}
        if isinstance(request, EncodeText):
            request, cut = fitted(request, self.components["tokenizer"])
        with resident(self.components.values(), device=self.device, offload=self.offload):
            made = self._encode(request, inputs)
            check_finite(made, f"what encode makes of {_words(request)}", self.components)
        progress.advance(1, 1)
        return Result(save({k: v.cpu().contiguous() for k, v in made.items()}), {"cut": cut} if cut else {})

    def _encode(self, request: Any, inputs: Sequence[Artifact]) -> Tensors:
        family, components = family_of(request.family), self.components
        match request:
            case EncodeText():
                seen = read_known(request.known, inputs) if request.known else Pictures()
                return family.encode_text(components, request, seen)
            case EncodeFrames():
                return family.encode_frames(components["vae"], request, read_known(request.known, inputs))
            case EmbedFrames():
                return family.embed_frames(components, request, read_known(request.known, inputs))
        raise TypeError(f"encode takes EncodeText, EncodeFrames or EmbedFrames, got {type(request).__name__}")


def _words(request: Any) -> str:
    return f"the prompt {request.prompt[:60]!r}" if isinstance(request, EncodeText) else "known frames"


def read_known(known: Known, inputs: Sequence[Artifact]) -> Pictures:
    """The frames that `known` describes, at the film's size."""
    sources = iter(inputs)
    first: deque[Frame] = deque(maxlen=known.num_first)
    for _ in range(known.num_inputs):
        data = as_bytes(next(sources))
        first.extend([fit_picture(data, known, known.first_fit)] if known.first_fit else read_lossless(data))
    between = [(at, fit_picture(as_bytes(next(sources)), known, fit)) for at, fit in known.keyframes]
    last = fit_picture(as_bytes(next(sources)), known, known.last_fit) if known.last_fit else None
    references = [fit_picture(as_bytes(next(sources)), known, f, around="white") for f in known.reference_fits]
    return Pictures(list(first), between, last, references)


def as_rgb(picture: Image.Image, *, around: str = "black") -> Image.Image:
    """A picture of any format as RGB (docs/pictures.md).

    Transparency shows `around`, never the colour that lies hidden under it; that of a palette, too. Gray of 16 bits is
    scaled: Pillow clips it to white. Whatever else there is (gray, palettes, CMYK) is as Pillow converts it.
    """
    if picture.mode.startswith("I"):  # PNG of 16 bits: I;16, or I in 32
        gray = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(gray.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, around)
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def fit_picture(data: bytes, known: Known, fit: str, *, around: str = "black") -> Frame:
    """A picture at the film's size, RGB, turned as its EXIF says; resized by Lanczos, as stock diffusers does."""
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as opened:
        picture = as_rgb(ImageOps.exif_transpose(opened), around=around)
    size = (known.width_px, known.height_px)
    if fit == "cover":
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif fit == "contain":
        picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=around)
    elif picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture, np.uint8)
