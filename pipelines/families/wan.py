"""Wan 2.1 and 2.2 in all their modes: what differs from other families.

Latents are (B, C, F, H, W), normalised. diffusers' own pipeline object, without the components that a stage does not
need, supplies `encode_prompt`; models, schedulers and the autoencoder are diffusers' too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from farm.task import Decode, Denoise, EmbedFrames, EncodeFrames, EncodeText
from pipelines.family import Family, Given, Pictures, Predict, StandIn, Tensors, as_video, guided_in_turn

MAX_PAST = 64  # latent frames by which a stream is known again; more than any halo
GRAY = 128  # of frames that VACE shall make, as in diffusers' example of it


class Wan(Family):
    streams = True

    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """Embeddings of one prompt: (1, max_tokens, dim), zero after its last token."""
        from diffusers.pipelines.wan.pipeline_wan import WanPipeline

        pipe = WanPipeline(components["tokenizer"], components["text_encoder"], vae=None, scheduler=None)
        embeds, _ = pipe.encode_prompt(
            request.prompt, do_classifier_free_guidance=False, max_sequence_length=request.max_tokens
        )
        return {"embeds": embeds}

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`latents` of the first frames; or `condition` (1, channels, F, H, W) of a whole chunk."""
        kind = dict(request.settings).get("condition")
        if kind is None:
            return {"latents": encode_video(vae, as_video(pictures.first))}
        if kind == "vace":
            return {"condition": vace_condition(vae, request, pictures)}
        return {"condition": image_condition(vae, request, pictures)}

    def embed_frames(self, components: Mapping[str, Any], request: EmbedFrames, pictures: Pictures) -> Tensors:
        """`image_embeds` (pictures, tokens, dim) by CLIP of the first frame, and of the last where it is known."""
        from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
        from PIL import Image

        shown = [pictures.first[0], *([pictures.last] if pictures.last is not None else [])]
        images = [Image.fromarray(f) for f in shown]
        pipe = WanImageToVideoPipeline(None, None, vae=None, scheduler=None, **components)
        return {"image_embeds": pipe.encode_image(images[0] if len(images) == 1 else images)}

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        """The conditional pass goes first and alone, as in the stock pipeline.

        With context, the first K latent frames are replaced by it, at timestep 0 (as Wan2.2 TI2V-5B takes its first
        frame); their part of the prediction means nothing.
        """
        settings = dict(request.settings)
        high, low, boundary = components["transformer"], components.get("transformer_2"), settings.get("boundary_ratio")
        boundary_t = None if boundary is None else boundary * components["scheduler"].config.num_train_timesteps
        dtypes = [expert.dtype for expert in (high, low) if expert is not None]  # each a walk over all modules
        condition, images = given.condition.get("condition"), given.condition.get("image_embeds")
        context, per_token = given.context, settings.get("expand_timesteps", False)

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            is_high = boundary_t is None or bool(t >= boundary_t)
            model: Any = high if is_high else low
            dtype = dtypes[not is_high]
            known = context.shape[2] if context is not None else 0
            hidden = torch.cat([context, latents[:, :, known:]], 2) if context is not None else latents
            more: dict[str, Any] = {}
            if condition is not None and "vace_layers" in model.config:
                more["control_hidden_states"] = condition[:, :, : latents.shape[2]].to(dtype)
                more["control_hidden_states_scale"] = torch.ones(
                    len(model.config.vace_layers), device=latents.device, dtype=dtype
                )
            elif condition is not None:
                hidden = torch.cat([latents, condition], dim=1)
            if images is not None:
                more["encoder_hidden_states_image"] = images.to(dtype)
            if per_token:
                _, _, frames, rows, columns = latents.shape
                _, down, across = model.config.patch_size
                tokens_a_frame = (rows // down) * (columns // across)
                timestep = t.repeat(latents.shape[0], frames * tokens_a_frame)
                timestep[:, : known * tokens_a_frame] = 0
            else:
                timestep = t.expand(latents.shape[0])

            def call(text: Tensors) -> torch.Tensor:
                out = model(
                    hidden_states=hidden.to(dtype), timestep=timestep,
                    encoder_hidden_states=text["embeds"].to(dtype), return_dict=False, **more,
                )[0]  # fmt: skip
                return out  # type: ignore[no-any-return]  # diffusers is untyped

            return guided_in_turn(model, call, given, request.guidance if is_high else request.guidance_low)

        return predict

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        z = latents.to(vae.device, vae.dtype)
        mean, inverse_std = _statistics(vae, z)
        return vae.decode(z / inverse_std + mean, return_dict=False)[0]  # type: ignore[no-any-return]  # untyped

    def decoder(self, vae: Any) -> DecodeStream:
        return DecodeStream(vae)


FAMILY = Wan()


def encode_video(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """Frames in [-1, 1], (1, 3, T, H, W), to normalised latents (1, C, F, H, W): the mode, as the stock pipelines."""
    z = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode()
    mean, inverse_std = _statistics(vae, z)
    return ((z - mean) * inverse_std).float()  # type: ignore[no-any-return]  # diffusers is untyped


def image_condition(vae: Any, request: EncodeFrames, pictures: Pictures) -> torch.Tensor:
    """Which frames are known (4 channels: each latent frame's frames) and the latents of the chunk with the rest gray.

    As WanImageToVideoPipeline makes it of one frame, or of the first and the last; further frames at the start stand in
    it in the same way.
    """
    known, total = len(pictures.first), request.num_frames
    has_last = pictures.last is not None
    first = as_video(pictures.first)
    last = as_video([pictures.last]) if pictures.last is not None else first[:, :, :0]
    gap = first.new_zeros(*first.shape[:2], total - known - has_last, *first.shape[3:])
    latents = encode_video(vae, torch.cat([first, gap, last], dim=2))
    factor = vae.config.scale_factor_temporal
    mask = torch.ones(1, 1, total, *latents.shape[3:])
    mask[:, :, known : total - has_last] = 0
    mask = torch.cat([mask[:, :, :1].repeat_interleave(factor, dim=2), mask[:, :, 1:]], dim=2)
    mask = mask.view(1, -1, factor, *latents.shape[3:]).transpose(1, 2)
    return torch.cat([mask.to(latents), latents], dim=1)


def vace_condition(vae: Any, request: EncodeFrames, pictures: Pictures) -> torch.Tensor:
    """What WanVACEPipeline makes of a video in which frames are known, of its mask, and of reference pictures."""
    from diffusers.pipelines.wan.pipeline_wan_vace import WanVACEPipeline
    from PIL import Image

    known = request.known
    patch = dict(request.settings)["patch"]
    transformer = StandIn({"patch_size": (1, patch, patch)})
    pipe = WanVACEPipeline(None, None, vae=vae, scheduler=None, transformer=transformer)
    size = (known.width_px, known.height_px)
    video = mask = None
    if pictures.first or pictures.last is not None:
        unknown = np.full((known.height_px, known.width_px, 3), GRAY, np.uint8)
        ends = [] if pictures.last is None else [pictures.last]
        num_gap = request.num_frames - len(pictures.first) - len(ends)
        frames = [*pictures.first, *[unknown] * num_gap, *ends]
        video = [Image.fromarray(f) for f in frames]
        mask = [Image.new("L", size, 255 if f is unknown else 0) for f in frames]
    references = [Image.fromarray(r) for r in pictures.references] or None
    made, masks, fitted = pipe.preprocess_conditions(
        video, mask, references, 1, size[1], size[0], request.num_frames, torch.float32, vae.device
    )
    latents = pipe.prepare_video_latents(made, masks, fitted, None, vae.device)
    return torch.cat([latents, pipe.prepare_masks(masks, fitted, None)], dim=1).float()


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
