"""LTX-Video: text, first image, and known frames anywhere. What differs from other families.

The farm's latents are (B, C, F, H, W), normalised; the model's are packed: (B, tokens, C). Three stock pipelines are
equalled. Checkpoints of LTXConditionPipeline take every mode as that one does, with timesteps and a step of its own,
and noise on known frames at every step. Others are LTXPipeline and, with a first frame, LTXImageToVideoPipeline, in
which several first frames stand as one does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from farm.task import Decode, Denoise, EncodeFrames, EncodeText
from pipelines.family import Draws, Family, Given, Pictures, Predict, Run, Tensors, as_video, guided_as_batch, step_of

IMAGE_NOISE = 0.15  # LTXConditionPipeline's image_cond_noise_scale
DECODE_TIMESTEP = 0.0  # the stock pipelines' decode_timestep, which is their noise at decoding too


class LTX(Family):
    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """`embeds` (1, max_tokens, dim) and `mask` (1, max_tokens), as the checkpoint's own pipeline makes them."""
        from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline

        kind = LTXConditionPipeline if dict(request.settings)["pipeline"] == "condition" else LTXPipeline
        pipe = kind(scheduler=None, vae=None, transformer=None, **components)
        embeds, mask, _, _ = pipe.encode_prompt(
            request.prompt, do_classifier_free_guidance=False, max_sequence_length=request.max_tokens
        )
        return {"embeds": embeds, "mask": mask}

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`latents` of the first frames; `extra` (1, C, pictures, H, W) of further ones, `extra_at` their frames.

        All are samples, normalised.
        """
        generator = torch.Generator("cpu").manual_seed(request.seed or 0)
        video = as_video(pictures.first) if pictures.first else None
        if dict(request.settings)["pipeline"] == "condition":  # there the noise comes first
            torch.randn(_shape_of(vae, request), generator=generator)
        made = {}
        if video is not None:
            made["latents"] = self._encode(vae, video, generator)
        extra, at = [], []
        ends = [] if pictures.last is None else [(request.num_frames - 1, pictures.last)]
        for frame, picture in [*pictures.between, *ends]:
            extra.append(self._encode(vae, as_video([picture]), generator))
            torch.randn(extra[-1].shape, generator=generator)  # noise that it is not mixed with
            at.append(frame)
        return made | ({"extra": torch.cat(extra, dim=2), "extra_at": torch.tensor(at)} if extra else {})

    def _encode(self, vae: Any, video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        from diffusers.pipelines.ltx.pipeline_ltx_image2video import LTXImageToVideoPipeline, retrieve_latents

        sample = retrieve_latents(vae.encode(video.to(vae.device, vae.dtype)), generator).float()
        made: torch.Tensor = LTXImageToVideoPipeline._normalize_latents(sample, vae.latents_mean, vae.latents_std)
        return made

    def set_timesteps(self, scheduler: Any, request: Denoise, components: Mapping[str, Any], device: str) -> None:
        from diffusers.pipelines.ltx import pipeline_ltx, pipeline_ltx_condition

        if _is_condition(request):
            timesteps = pipeline_ltx_condition.linear_quadratic_schedule(request.steps) * 1000
            pipeline_ltx_condition.retrieve_timesteps(scheduler, request.steps, device, timesteps)
            return
        _, _, _, rows, columns = request.latent_shape
        config, tokens = scheduler.config, request.slices[0].num_latents * rows * columns
        mu = pipeline_ltx.calculate_shift(
            tokens, config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5), config.get("max_shift", 1.15),
        )  # fmt: skip
        sigmas = np.linspace(1.0, 1 / request.steps, request.steps)
        pipeline_ltx.retrieve_timesteps(scheduler, request.steps, device, sigmas=sigmas, mu=mu)

    def draw(self, request: Denoise, generator: torch.Generator) -> torch.Tensor:
        if request.context_latents and not _is_condition(request):  # there the known frame's sample comes first
            torch.randn(_known_shape(request), generator=generator)
        return super().draw(request, generator)

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        if _is_condition(request):
            return self._predict_conditioned(components, request, given)
        model: Any = components["transformer"]
        dtype = model.dtype  # a walk over all modules
        known = given.context
        scales = dict(request.settings)
        rope = (scales["temporal"] / request.fps, scales["spatial"], scales["spatial"])

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            _, _, frames, rows, columns = latents.shape
            hidden = latents if known is None else torch.cat([known, latents[:, :, known.shape[2] :]], 2)
            packed = pack(hidden)

            def call(text: Tensors, number: int) -> torch.Tensor:
                timestep = t.expand(number)
                if known is not None:
                    mask = torch.zeros(number, packed.shape[1], device=latents.device)
                    mask[:, : known.shape[2] * rows * columns] = 1.0
                    timestep = timestep.unsqueeze(-1) * (1 - mask)
                out = model(
                    hidden_states=torch.cat([packed] * number).to(dtype), timestep=timestep,
                    encoder_hidden_states=text["embeds"].to(dtype), encoder_attention_mask=text["mask"],
                    num_frames=frames, height=rows, width=columns, rope_interpolation_scale=rope, return_dict=False,
                )[0]  # fmt: skip
                return out.float()  # type: ignore[no-any-return]  # diffusers is untyped

            return unpack(guided_as_batch(model, call, given, request.guidance), latents)

        return predict

    def _predict_conditioned(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model, scheduler = components["transformer"], components["scheduler"]
        dtype = model.dtype  # a walk over all modules
        extra, at = given.condition.get("extra"), given.condition.get("extra_at")
        noise_at = _step_noise(request, 0 if extra is None else extra.shape[2])
        num_extra = 0 if extra is None else extra[0, 0].numel()

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            noise = noise_at.at(step_of(scheduler, t)).to(latents.device)
            packed = pack(noised(latents, given.context, _own_noise(noise, latents, num_extra), t))
            coordinates = _coordinates(latents, request, frame_index=0)
            mask = torch.zeros(1, packed.shape[1], device=latents.device)
            if given.context is not None:
                mask[:, : given.context.shape[2] * latents.shape[3] * latents.shape[4]] = 1.0
            if extra is not None and at is not None:
                tokens = pack(extra) + IMAGE_NOISE * noise[:, :num_extra] * (t / 1000.0) ** 2
                packed = torch.cat([tokens, packed], 1)
                each = [_coordinates(extra[:, :, :1], request, frame_index=frame) for frame in at.tolist()]
                coordinates = torch.cat([*each, coordinates], 2)
                mask = torch.cat([torch.ones(1, num_extra, device=latents.device), mask], 1)
            coordinates = coordinates.float()
            coordinates[:, 0] = coordinates[:, 0] * (1.0 / request.fps)

            def call(text: Tensors, number: int) -> torch.Tensor:
                timestep = t.expand(number).unsqueeze(-1).float()
                if given.context is not None or extra is not None:
                    timestep = torch.min(timestep, (1 - torch.cat([mask] * number)) * 1000.0)
                out = model(
                    hidden_states=torch.cat([packed] * number).to(dtype), timestep=timestep,
                    encoder_hidden_states=text["embeds"].to(dtype), encoder_attention_mask=text["mask"],
                    video_coords=torch.cat([coordinates] * number), return_dict=False,
                )[0]  # fmt: skip
                return out.float()  # type: ignore[no-any-return]  # diffusers is untyped

            return unpack(guided_as_batch(model, call, given, request.guidance)[:, num_extra:], latents)

        return predict

    def step(self, run: Run, prediction: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        if not _is_condition(run.request):
            return super().step(run, prediction, t, latents)
        context, extra = run.given.context, run.given.condition.get("extra")
        timestep = t.expand(1).unsqueeze(-1).float()
        if context is None and extra is None:
            made = run.scheduler.step(
                -pack(prediction), t, pack(latents), per_token_timesteps=timestep, return_dict=False
            )[0]
            return unpack(made, latents)
        noise = _step_noise(run.request, 0 if extra is None else extra.shape[2]).at(run.step).to(latents.device)
        num_extra = 0 if extra is None else extra[0, 0].numel()
        held = pack(noised(latents, context, _own_noise(noise, latents, num_extra), t))
        mask = torch.zeros(1, held.shape[1], device=latents.device)
        if context is not None:
            mask[:, : context.shape[2] * latents.shape[3] * latents.shape[4]] = 1.0
        timestep = torch.min(timestep, (1 - mask) * 1000.0)
        made = run.scheduler.step(-pack(prediction), t, held, per_token_timesteps=timestep, return_dict=False)[0]
        is_free = (t / 1000 - 1e-6 < 1.0 - mask).unsqueeze(-1)
        return unpack(torch.where(is_free, made, held), latents)

    def end(self, run: Run, latents: torch.Tensor) -> torch.Tensor:
        """With conditions, known frames keep the noise of the last step, as the stock pipeline leaves them."""
        return latents if _is_condition(run.request) else super().end(run, latents)

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline

        z = LTXPipeline._denormalize_latents(
            latents.to(vae.device), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        ).to(vae.dtype)
        t = (
            torch.tensor([DECODE_TIMESTEP], device=z.device, dtype=z.dtype)
            if vae.config.timestep_conditioning
            else None
        )
        return vae.decode(z, t, return_dict=False)[0]  # type: ignore[no-any-return]  # diffusers is untyped


FAMILY = LTX()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, F, H, W) to (B, F * H * W, C)."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, F * H * W, C) to the shape of `like`, (B, C, F, H, W)."""
    return tokens.transpose(1, 2).reshape(like.shape)


def noised(latents: torch.Tensor, context: torch.Tensor | None, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The latents with known frames in their place, noised as LTXConditionPipeline does: more the noisier the rest."""
    if context is None:
        return latents
    known = context.shape[2]
    return torch.cat([context + IMAGE_NOISE * noise[:, :, :known] * (t / 1000.0) ** 2, latents[:, :, known:]], 2)


def _is_condition(request: Denoise) -> bool:
    return bool(dict(request.settings)["pipeline"] == "condition")


@functools.lru_cache(maxsize=2)
def _step_noise(request: Denoise, num_extra: int) -> Draws:
    """The noise on known frames, drawn after the latents' noise and the samples of the known frames.

    One for a task: its prediction and its step ask for the same, and each step's follows from the one before.
    """
    before: list[tuple[int, ...]] = [request.latent_shape]
    one, channels, _, rows, columns = request.latent_shape
    num_tokens = request.latent_shape[2] * rows * columns
    if request.context_latents:
        before.append(_known_shape(request))
    before += [(one, channels, 1, rows, columns)] * 2 * num_extra  # samples, and noise that they are not mixed with
    num_tokens += num_extra * rows * columns
    return Draws(request.seed, before, (one, num_tokens, channels))


def _own_noise(noise: torch.Tensor, latents: torch.Tensor, num_extra: int) -> torch.Tensor:
    """That of the chunk's own tokens, which follow those of further pictures, as (B, C, F, H, W)."""
    return unpack(noise[:, num_extra : num_extra + latents[0, 0].numel()], latents)


def _known_shape(request: Denoise) -> tuple[int, ...]:
    one, channels, _, rows, columns = request.latent_shape
    return one, channels, request.context_latents, rows, columns


def _shape_of(vae: Any, request: EncodeFrames) -> tuple[int, ...]:
    """Of a chunk's latents."""
    spatial, temporal = vae.spatial_compression_ratio, vae.temporal_compression_ratio
    rows, columns = request.known.height_px // spatial, request.known.width_px // spatial
    return 1, vae.config.latent_channels, (request.num_frames - 1) // temporal + 1, rows, columns


def _coordinates(latents: torch.Tensor, request: Denoise, *, frame_index: int) -> torch.Tensor:
    """Where tokens lie: frame, row and column in the video, (1, 3, tokens)."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline

    scales, (_, _, frames, rows, columns) = dict(request.settings), latents.shape
    ids = LTXConditionPipeline._prepare_video_ids(1, frames, rows, columns, device=latents.device)
    scaled: torch.Tensor = LTXConditionPipeline._scale_video_ids(
        ids, scales["spatial"], scales["temporal"], frame_index, latents.device
    )
    return scaled
