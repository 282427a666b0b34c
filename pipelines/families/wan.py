"""Wan 2.1 and 2.2, text to video: what differs from other families.

Latents are (B, C, F, H, W), normalised. diffusers' own pipeline object, without the components that a stage does not
need, supplies `encode_prompt`; models, schedulers and the autoencoder are diffusers' too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from farm.task import Denoise

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def encode_prompt(components: dict[str, Any], prompt: str, *, max_tokens: int) -> torch.Tensor:
    """Embeddings of one prompt: (1, max_tokens, dim), zero after its last token."""
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    pipe = WanPipeline(components["tokenizer"], components["text_encoder"], vae=None, scheduler=None)
    embeds, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=max_tokens)
    return embeds  # type: ignore[no-any-return]  # diffusers is untyped


def make_predict(
    components: dict[str, Any], request: Denoise, embeds: torch.Tensor, negative_embeds: torch.Tensor | None
) -> Predict:
    """The model's part of the loop: latents (B, C, F, H, W) and timestep to the guided prediction, same shape.

    The conditional pass goes first and alone, as in the stock pipeline; a batch of two would change bits.
    """
    high: Any = components["transformer"]
    low: Any = components.get("transformer_2")
    boundary = None
    if request.boundary_ratio is not None:
        boundary = request.boundary_ratio * components["scheduler"].config.num_train_timesteps

    def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        is_high = boundary is None or bool(t >= boundary)
        model = high if is_high else low
        guidance = request.guidance if is_high else request.guidance_low
        hidden = latents.to(model.dtype)
        if request.per_token_timesteps:
            _, _, frames, rows, columns = latents.shape
            _, down, across = model.config.patch_size
            tokens = frames * (rows // down) * (columns // across)
            timestep = t.expand(latents.shape[0], tokens)
        else:
            timestep = t.expand(latents.shape[0])

        def call(text: torch.Tensor) -> torch.Tensor:
            out = model(hidden_states=hidden, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
            return out  # type: ignore[no-any-return]  # diffusers is untyped

        conditional = call(embeds.to(model.dtype))
        if negative_embeds is None:
            return conditional
        unconditional = call(negative_embeds.to(model.dtype))
        return unconditional + guidance * (conditional - unconditional)

    return predict


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents (1, C, F, H, W) to frames in [-1, 1], (1, 3, T, H, W)."""
    latents = latents.to(vae.device, vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)
    return vae.decode(latents / inverse_std + mean, return_dict=False)[0]  # type: ignore[no-any-return]  # diffusers is untyped
