"""Stable Video Diffusion: a picture moves; no text. What differs from other families.

The model is a U-Net over (B, F, C, H, W); the farm's latents are (B, C, F, H, W). Guidance rises from frame to frame,
from 1 to what is asked for. The autoencoder decodes some frames at a time, which it smooths among each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from farm.task import Decode, Denoise, EmbedFrames, EncodeFrames
from pipelines.family import Family, Given, Pictures, Predict, Run, Tensors, as_video

MIN_GUIDANCE = 1.0


class StableVideo(Family):
    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`picture` (1, C, 1, H, W): the latents of the first frame with a little noise, not scaled."""
        generator = torch.Generator("cpu").manual_seed(request.seed or 0)
        image = as_video(pictures.first[-1:])[:, :, 0]
        image = image + dict(request.settings)["noise_aug_strength"] * torch.randn(image.shape, generator=generator)
        return {"picture": vae.encode(image.to(vae.device, vae.dtype)).latent_dist.mode().float()[:, :, None]}

    def embed_frames(self, components: Mapping[str, Any], request: EmbedFrames, pictures: Pictures) -> Tensors:
        """`image_embeds` (1, 1, dim) of the first frame by CLIP."""
        from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
            StableVideoDiffusionPipeline,
        )
        from PIL import Image

        pipe = StableVideoDiffusionPipeline(vae=None, unet=None, scheduler=None, **components)
        image = Image.fromarray(pictures.first[-1])
        return {"image_embeds": pipe._encode_image(image, components["image_encoder"].device, 1, False)}

    def draw(self, request: Denoise, generator: torch.Generator) -> torch.Tensor:
        one, channels, frames, rows, columns = request.latent_shape
        factor = dict(request.settings)["spatial"]
        torch.randn(one, 3, rows * factor, columns * factor, generator=generator)  # that on the picture comes first
        return torch.randn(one, frames, channels, rows, columns, generator=generator).transpose(1, 2)

    def begin(self, run: Run, noise: torch.Tensor) -> torch.Tensor:
        sigma: float = run.scheduler.init_noise_sigma
        return noise * sigma

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model, scheduler, settings = components["unet"], components["scheduler"], dict(request.settings)
        dtype = model.dtype  # a walk over all modules
        picture, images = given.condition["picture"], given.condition["image_embeds"].to(dtype)
        told = [request.fps - 1, settings["motion_bucket_id"], settings["noise_aug_strength"]]
        is_guided = request.guidance > 1

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            number, frames = 2 if is_guided else 1, latents.shape[2]
            own = latents.transpose(1, 2)
            hidden = scheduler.scale_model_input(torch.cat([own] * number), t)
            shown = picture.transpose(1, 2).repeat(1, frames, 1, 1, 1)
            embeds = images
            if is_guided:
                shown, embeds = (torch.cat([torch.zeros_like(x), x]) for x in (shown, images))
            out = model(
                torch.cat([hidden, shown], dim=2).to(dtype), t, encoder_hidden_states=embeds,
                added_time_ids=torch.tensor([told] * number, dtype=dtype, device=latents.device),
                return_dict=False,
            )[0]  # fmt: skip
            if is_guided:
                scale = torch.linspace(MIN_GUIDANCE, request.guidance, frames, device=latents.device)
                unconditional, conditional = out.chunk(2)
                out = unconditional + scale.view(1, -1, 1, 1, 1).to(latents.dtype) * (conditional - unconditional)
            return out.transpose(1, 2)  # type: ignore[no-any-return]  # diffusers is untyped

        return predict

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        z = 1 / vae.config.scaling_factor * latents.transpose(1, 2).flatten(0, 1).to(vae.device, vae.dtype)
        pieces = z.split(dict(request.settings)["decode_chunk_size"])
        frames = torch.cat([vae.decode(piece, num_frames=len(piece)).sample for piece in pieces])
        return frames.transpose(0, 1)[None].float()


FAMILY = StableVideo()
