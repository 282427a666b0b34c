"""HunyuanVideo, text and first image: what differs from other families.

Guidance is a number that the model is told; there is no second pass. The image variants know two ways to be given the
first frame: as further channels and one latent frame more than is shown (`latent_concat`), or in place of the first
latent frame (`token_replace`). Their text encoder looks at the picture too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from farm.task import Decode, Denoise, EncodeFrames, EncodeText
from pipelines.family import Family, Given, Pictures, Predict, Run, Tensors, as_video, cached_as

IMAGE_SHARE = 0.001  # of the picture in the noise that the image variants begin with


class HunyuanVideo(Family):
    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """`embeds` (1, tokens, dim) and `mask` of the language model, `pooled` (1, dim) of CLIP."""
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline

        parts = {"vae": None, "transformer": None, "scheduler": None, **components}
        if not seen.first:
            embeds, pooled, mask = HunyuanVideoPipeline(**parts).encode_prompt(
                request.prompt, max_sequence_length=request.max_tokens
            )
            return {"embeds": embeds, "pooled": pooled, "mask": mask}
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import (
            HunyuanVideoImageToVideoPipeline,
        )
        from PIL import Image

        embeds, pooled, mask = HunyuanVideoImageToVideoPipeline(**parts).encode_prompt(
            Image.fromarray(seen.first[-1]), request.prompt, max_sequence_length=request.max_tokens,
            image_embed_interleave=2 if dict(request.settings)["way"] == "latent_concat" else 4,
        )  # fmt: skip
        return {"embeds": embeds, "pooled": pooled, "mask": mask}

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`latents` (1, C, 1, H, W) of the first frame: the mode, scaled."""
        video = as_video(pictures.first[-1:]).to(vae.device, vae.dtype)
        return {"latents": vae.encode(video).latent_dist.mode().float() * vae.config.scaling_factor}

    def set_timesteps(self, scheduler: Any, request: Denoise, components: Mapping[str, Any], device: str) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, request.steps + 1)[:-1], device=device)

    def begin(self, run: Run, noise: torch.Tensor) -> torch.Tensor:
        picture = run.given.condition.get("latents")
        if picture is None:
            return noise
        t = torch.tensor([1 - IMAGE_SHARE], device=noise.device)
        return noise * t + picture.repeat(1, 1, noise.shape[2], 1, 1) * (1 - t)

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model: Any = components["transformer"]
        dtype = model.dtype  # a walk over all modules
        way, picture = dict(request.settings)["way"], given.condition.get("latents")
        text = {k: v.to(dtype) for k, v in given.text.items()}
        guidance = None
        if picture is None or model.config.guidance_embeds:
            guidance = torch.tensor([request.guidance], dtype=dtype, device=text["embeds"].device) * 1000.0

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            hidden = latents
            if picture is not None and way == "token_replace":
                hidden = torch.cat([picture, latents[:, :, 1:]], dim=2)
            elif picture is not None:
                rest = picture.new_zeros(*picture.shape[:2], latents.shape[2] - 1, *picture.shape[3:])
                mask = torch.ones_like(latents[:, :1])
                mask[:, :, 1:] = 0
                hidden = torch.cat([latents, torch.cat([picture, rest], dim=2), mask], dim=1)
            with cached_as(model, f"cond{given.name}"):
                out = model(
                    hidden_states=hidden.to(dtype), timestep=t.expand(1).to(latents.dtype),
                    encoder_hidden_states=text["embeds"], encoder_attention_mask=text["mask"],
                    pooled_projections=text["pooled"], guidance=guidance, return_dict=False,
                )[0]  # fmt: skip
            return out  # type: ignore[no-any-return]  # diffusers is untyped

        return predict

    def end(self, run: Run, latents: torch.Tensor) -> torch.Tensor:
        picture = run.given.condition.get("latents")
        if picture is not None and dict(run.request.settings)["way"] == "token_replace":
            latents[:, :, :1] = picture
        return latents

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        return vae.decode(z, return_dict=False)[0]  # type: ignore[no-any-return]  # diffusers is untyped


FAMILY = HunyuanVideo()
