"""CogVideoX 2B, 5B and 1.5, text and first image: what differs from other families.

The model's latents are (B, F, C, H, W), the farm's (B, C, F, H, W). CogVideoX-1.5 takes latent frames in pairs: one
more leads where their number is odd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from farm.task import Decode, Denoise, EncodeFrames, EncodeText
from pipelines.family import Family, Given, Pictures, Predict, Run, Tensors, as_video, guided_as_batch


class CogVideoX(Family):
    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """`embeds` (1, max_tokens, dim) of T5."""
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

        pipe = CogVideoXPipeline(vae=None, transformer=None, scheduler=None, **components)
        embeds, _ = pipe.encode_prompt(
            request.prompt, do_classifier_free_guidance=False, max_sequence_length=request.max_tokens
        )
        return {"embeds": embeds}

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`picture` (1, C, 1, H, W): a sample of the first frame's latents, scaled."""
        from diffusers.pipelines.cogvideo.pipeline_cogvideox_image2video import retrieve_latents

        video = as_video(pictures.first[-1:]).to(vae.device, vae.dtype)
        generator = torch.Generator("cpu").manual_seed(request.seed or 0)
        latents, scale = retrieve_latents(vae.encode(video), generator), vae.config.scaling_factor
        return {"picture": (1 / scale * latents if vae.config.invert_scale_latents else scale * latents).float()}

    def draw(self, request: Denoise, generator: torch.Generator) -> torch.Tensor:
        one, channels, frames, rows, columns = request.latent_shape
        if request.mode != "text":  # the sample of the first frame comes first
            torch.randn(one, channels, 1, rows, columns, generator=generator)
        return torch.randn(one, frames, channels, rows, columns, generator=generator).transpose(1, 2)

    def begin(self, run: Run, noise: torch.Tensor) -> torch.Tensor:
        sigma: float = run.scheduler.init_noise_sigma
        return noise * sigma

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

        model, scheduler = components["transformer"], components["scheduler"]
        dtype = model.dtype  # a walk over all modules
        pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=scheduler)
        picture = given.condition.get("picture")

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            _, _, frames, rows, columns = latents.shape
            rope = None
            if model.config.use_rotary_positional_embeddings:
                spatial = pipe.vae_scale_factor_spatial
                rope = pipe._prepare_rotary_positional_embeddings(
                    rows * spatial, columns * spatial, frames, latents.device
                )
            own = latents.transpose(1, 2).contiguous()
            ofs = None if model.config.ofs_embed_dim is None else own.new_full((1,), fill_value=2.0)

            def call(text: Tensors, number: int) -> torch.Tensor:
                hidden = scheduler.scale_model_input(torch.cat([own] * number), t)
                if picture is not None:
                    shown = picture.transpose(1, 2)
                    rest = shown.new_zeros(1, frames - 1, *shown.shape[2:])
                    hidden = torch.cat([hidden, torch.cat([torch.cat([shown, rest], dim=1)] * number)], dim=2)
                out = model(
                    hidden_states=hidden.to(dtype), encoder_hidden_states=text["embeds"].to(dtype),
                    timestep=t.expand(number), ofs=ofs, image_rotary_emb=rope, return_dict=False,
                )[0]  # fmt: skip
                return out.float()  # type: ignore[no-any-return]  # diffusers is untyped

            return guided_as_batch(model, call, given, request.guidance).transpose(1, 2)

        return predict

    def step(self, run: Run, prediction: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """CogVideoX's own DPM scheduler draws noise, in the model's layout, and wants its last guess again."""
        from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

        scheduler, wanted = run.scheduler, prediction.transpose(1, 2).contiguous()
        own = latents.transpose(1, 2).contiguous()
        if not isinstance(scheduler, CogVideoXDPMScheduler):
            made = scheduler.step(wanted, t, own, return_dict=False)[0]
        else:
            before = scheduler.timesteps[run.step - 1] if run.step else None
            made, run.carried["guess"] = scheduler.step(
                wanted, run.carried.get("guess"), t, before, own, generator=run.generator, return_dict=False
            )
        return made.transpose(1, 2)  # type: ignore[no-any-return]  # diffusers is untyped

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        z = 1 / vae.config.scaling_factor * latents.to(vae.device, vae.dtype)
        return vae.decode(z).sample  # type: ignore[no-any-return]  # diffusers is untyped


FAMILY = CogVideoX()
