"""Wan 2.1 and 2.2, text to video: what differs from other families.

Latents are (B, C, F, H, W), normalised. diffusers' own pipeline object, without the components that a stage does not
need, supplies `encode_prompt`; models, schedulers and the autoencoder are diffusers' too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from farm.task import Denoise

MAX_PAST = 64  # latent frames by which a stream is known again; more than any halo
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def encode_prompt(components: dict[str, Any], prompt: str, *, max_tokens: int) -> torch.Tensor:
    """Embeddings of one prompt: (1, max_tokens, dim), zero after its last token."""
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    pipe = WanPipeline(components["tokenizer"], components["text_encoder"], vae=None, scheduler=None)
    embeds, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=max_tokens)
    return embeds  # type: ignore[no-any-return]  # diffusers is untyped


def make_predict(
    components: dict[str, Any],
    request: Denoise,
    embeds: torch.Tensor,
    negative_embeds: torch.Tensor | None,
    context: torch.Tensor | None = None,
) -> Predict:
    """The model's part of the loop: latents (B, C, F, H, W) and timestep to the guided prediction, same shape.

    The conditional pass goes first and alone, as in the stock pipeline; a batch of two would change bits.

    Args:
        context: clean latents (B, C, K, H, W) that the first K latent frames are replaced by, at timestep 0 (as Wan2.2
            TI2V-5B takes its first frame); their part of the prediction means nothing.
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
        known = context.shape[2] if context is not None else 0
        hidden = (torch.cat([context, latents[:, :, known:]], 2) if context is not None else latents).to(model.dtype)
        if request.per_token_timesteps:
            _, _, frames, rows, columns = latents.shape
            _, down, across = model.config.patch_size
            tokens_a_frame = (rows // down) * (columns // across)
            timestep = t.repeat(latents.shape[0], frames * tokens_a_frame)
            timestep[:, : known * tokens_a_frame] = 0
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


def encode_frames(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], (1, 3, T, H, W), to normalised latents (1, C, F, H, W): the mode, as the stock pipelines."""
    z = vae.encode(frames.to(vae.device, vae.dtype)).latent_dist.mode()
    mean, inverse_std = _statistics(vae, z)
    return ((z - mean) * inverse_std).float()  # type: ignore[no-any-return]  # diffusers is untyped


class DecodeStream:
    """A stream of latents on its way through an AutoencoderKLWan, one latent frame at a time, with memory that stays.

    The frames are those of `vae.decode` of the whole stream, bit for bit: it runs the same loop. What the decoder knows
    of the past is its causal cache; the last latent frames are kept beside it to tell which stream this is.
    """

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

        self.vae = vae
        self.cache: list[Any] = [None] * sum(isinstance(m, WanCausalConv3d) for m in vae.decoder.modules())
        self.position = 0
        self.past: list[torch.Tensor] = []

    def decode_next(self, latent: torch.Tensor) -> torch.Tensor:
        """One normalised latent frame (1, C, 1, H, W) to its frames in [-1, 1], (3, T, H, W)."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        x = latent.to(self.vae.device, self.vae.dtype)
        mean, inverse_std = _statistics(self.vae, x)
        x = self.vae.post_quant_conv(x / inverse_std + mean)
        first = {"first_chunk": True} if self.position == 0 else {}
        out = self.vae.decoder(x, feat_cache=self.cache, feat_idx=[0], **first)
        if self.vae.config.patch_size is not None:
            out = unpatchify(out, patch_size=self.vae.config.patch_size)
        self.position += 1
        self.past = [*self.past, latent.clone()][-MAX_PAST:]
        return torch.clamp(out[0], min=-1.0, max=1.0)

    def ends_with(self, halo: torch.Tensor, *, is_whole: bool) -> bool:
        """Whether the latent frames decoded last are these; with `is_whole` there must have been no others."""
        count = halo.shape[2]
        if len(self.past) < count or (self.position != count if is_whole else self.position < count):
            return False
        return torch.equal(torch.cat(self.past[-count:], dim=2), halo)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.cache if isinstance(t, torch.Tensor))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents (1, C, F, H, W), a whole stream, to frames in [-1, 1], (1, 3, T, H, W)."""
    stream = DecodeStream(vae)
    return torch.cat([stream.decode_next(latents[:, :, i : i + 1]) for i in range(latents.shape[2])], dim=1)[None]


def _statistics(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse standard deviation of each latent channel, in the order of arithmetic of the stock pipelines."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(like)
    return mean, 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(like)
