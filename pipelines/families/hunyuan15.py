"""HunyuanVideo-1.5, text and first image: what differs from other families.

Guidance is a component of the checkpoint, diffusers' guider. Every call takes a condition and a mask as further
channels; they are zero without a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from farm.task import Denoise, EmbedFrames, EncodeFrames, EncodeText
from pipelines.families.hunyuan import HunyuanVideo
from pipelines.family import Given, Pictures, Predict, StandIn, Tensors, as_video, cached_as, step_of

IMAGE_TOKENS = 729  # of SigLIP, zero without a picture: the stock pipelines' vision_num_semantic_tokens
TEXTS = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2", "encoder_attention_mask_2")


class HunyuanVideo15(HunyuanVideo):
    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """`embeds` and `mask` of the language model, `embeds_2` and `mask_2` of ByT5, for words to be shown."""
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline

        vae = StandIn({"latent_channels": 0}, temporal_compression_ratio=1, spatial_compression_ratio=1)
        pipe = HunyuanVideo15Pipeline(vae=vae, transformer=None, scheduler=None, guider=None, **components)
        made = pipe.encode_prompt(request.prompt, device=components["text_encoder"].device)
        return dict(zip(("embeds", "mask", "embeds_2", "mask_2"), made, strict=True))

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """`picture` (1, C, 1, H, W): the first frame's latents."""
        video = as_video(pictures.first[-1:]).to(vae.device, vae.dtype)
        return {"picture": vae.encode(video).latent_dist.mode().float() * vae.config.scaling_factor}

    def embed_frames(self, components: Mapping[str, Any], request: EmbedFrames, pictures: Pictures) -> Tensors:
        """`image_embeds` (1, tokens, dim) of the first frame by SigLIP."""
        from diffusers.pipelines.hunyuan_video1_5 import pipeline_hunyuan_video1_5_image2video as stock
        from PIL import Image

        encoder = components["image_encoder"]
        image = Image.fromarray(pictures.first[-1])
        embeds = stock.HunyuanVideo15ImageToVideoPipeline._get_image_embeds(
            encoder, components["feature_extractor"], image, encoder.device
        )
        return {"image_embeds": embeds}

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model, scheduler = components["transformer"], components["scheduler"]
        dtype = model.dtype  # a walk over all modules
        guider = components["guider"].new(guidance_scale=request.guidance if given.negative is not None else 1.0)
        picture, images = given.condition.get("picture"), given.condition.get("image_embeds")
        negative: Mapping[str, Any] = given.negative or dict.fromkeys(given.text)
        names = dict(zip(TEXTS, ("embeds", "mask", "embeds_2", "mask_2"), strict=True))

        def cast(texts: Mapping[str, Any], name: str) -> Any:
            return None if texts[name] is None else texts[name].to(dtype)

        inputs = {key: (cast(given.text, name), cast(negative, name)) for key, name in names.items()}

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            condition, mask = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
            if picture is not None:
                condition[:, :, :1], mask[:, :, :1] = picture, 1.0
            hidden = torch.cat([latents, condition, mask], dim=1).to(dtype)
            shown = images
            if shown is None:
                shown = torch.zeros(1, IMAGE_TOKENS, model.config.image_embed_dim, device=latents.device)
            step, more = step_of(scheduler, t), {}
            if model.config.use_meanflow and picture is not None:
                after = scheduler.timesteps[step + 1] if step + 1 < request.steps else torch.zeros_like(t)
                more["timestep_r"] = after.expand(1).to(latents.dtype)
            guider.set_state(step=step, num_inference_steps=request.steps, timestep=t)
            batches = guider.prepare_inputs(inputs)
            for batch in batches:
                guider.prepare_models(model)
                with cached_as(model, f"{getattr(batch, guider._identifier_key)}{given.name}"):
                    batch.noise_pred = model(
                        hidden_states=hidden, timestep=t.expand(1).to(hidden.dtype), image_embeds=shown.to(dtype),
                        return_dict=False, **{key: getattr(batch, key) for key in inputs}, **more,
                    )[0]  # fmt: skip
                guider.cleanup_models(model)
            return guider(batches)[0]  # type: ignore[no-any-return]  # diffusers is untyped

        return predict


FAMILY = HunyuanVideo15()
