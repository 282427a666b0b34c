"""Mochi 1, text only: what differs from other families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from farm.task import Decode, Denoise, EncodeText
from pipelines.family import Family, Given, Pictures, Predict, Tensors, guided_as_batch

THRESHOLD_NOISE = 0.025  # of its schedule, half of which is linear


class Mochi(Family):
    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """`embeds` (1, max_tokens, dim) and `mask` of T5; of an empty prompt zeros, where the checkpoint wants it."""
        from diffusers.pipelines.mochi.pipeline_mochi import MochiPipeline

        pipe = MochiPipeline(scheduler=None, vae=None, transformer=None, **components, **dict(request.settings))
        embeds, mask, _, _ = pipe.encode_prompt(
            request.prompt, do_classifier_free_guidance=False, max_sequence_length=request.max_tokens
        )
        return {"embeds": embeds, "mask": mask}

    def set_timesteps(self, scheduler: Any, request: Denoise, components: Mapping[str, Any], device: str) -> None:
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        sigmas = np.array(linear_quadratic_schedule(request.steps, THRESHOLD_NOISE))
        scheduler.set_timesteps(sigmas=sigmas, device=device)

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model: Any = components["transformer"]
        dtype = model.dtype  # a walk over all modules

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            def call(text: Tensors, number: int) -> torch.Tensor:
                out = model(
                    hidden_states=torch.cat([latents] * number).to(dtype),
                    encoder_hidden_states=text["embeds"].to(dtype), encoder_attention_mask=text["mask"],
                    timestep=t.expand(number).to(latents.dtype), return_dict=False,
                )[0]  # fmt: skip
                return out.float()  # type: ignore[no-any-return]  # diffusers is untyped

            return guided_as_batch(model, call, given, request.guidance)

        return predict

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        z, config = latents.to(vae.device), vae.config
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (config.latents_mean, config.latents_std))
            z = z * std / config.scaling_factor + mean
        else:
            z = z / config.scaling_factor
        return vae.decode(z.to(vae.dtype), return_dict=False)[0]  # type: ignore[no-any-return]  # diffusers is untyped


FAMILY = Mochi()
