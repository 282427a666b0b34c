"""A small random checkpoint of every model family, of diffusers' and transformers' own classes, in the real format.

Each is of a few hundred kB. Normalisations are far from one, so that leaving one out cannot go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny_checkpoints import WORDS
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

SPECIAL = ["<pad>", "</s>", "<unk>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
DIM = 16  # of text embeddings
TEMPLATE = "system user assistant Describe the video by detailing following aspects"  # words of prompt templates
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def tokenizer() -> Any:
    words = dict.fromkeys([*WORDS, *TEMPLATE.split()])
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    inner.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    made.chat_template = CHAT
    return made


def t5() -> Any:
    config = transformers.T5Config(vocab_size=512, d_model=DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def umt5() -> Any:
    config = transformers.UMT5Config(vocab_size=64, d_model=DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return transformers.UMT5EncoderModel(config)


def clip_text() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


def llama_config() -> Any:
    return transformers.LlamaConfig(
        vocab_size=64, hidden_size=DIM, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, max_position_embeddings=2048,
    )  # fmt: skip


def clip_vision(size: int, patch: int) -> dict[str, int]:
    return {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
        "projection_dim": 8, "image_size": size, "patch_size": patch,
    }  # fmt: skip


def clip_images(size: int) -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def flow(**how: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | how)


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan_vae(**how: Any) -> Any:
    return diffusers.AutoencoderKLWan(
        **{"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
           "temperal_downsample": [False, True, True]} | how
    )  # fmt: skip


def wan_transformer(cls: Any = diffusers.WanTransformer3DModel, **how: Any) -> Any:
    return cls(
        **{"patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
           "out_channels": 16, "text_dim": DIM, "freq_dim": 32, "ffn_dim": 16, "num_layers": 2,
           "cross_attn_norm": True, "rope_max_seq_len": 64} | how
    )  # fmt: skip


def wan(kind: str, **how: Any) -> Any:
    """Text; how: `low` a second expert, `per_token`, `image_dim` for CLIP, `scheduler`."""
    vae = wan_vae(**how.pop("vae", {}))
    extra: dict[str, Any] = {}
    transformer = how.pop("transformer", {})
    if kind == "WanImageToVideoPipeline":
        if not how.get("expand_timesteps"):
            transformer = {"in_channels": 36} | transformer
        if transformer.get("image_dim"):
            vision = transformers.CLIPVisionConfig(**clip_vision(32, 16))
            extra = {"image_encoder": transformers.CLIPVisionModel(vision), "image_processor": clip_images(32)}
    cls = diffusers.WanVACETransformer3DModel if kind == "WanVACEPipeline" else diffusers.WanTransformer3DModel
    if kind == "WanVACEPipeline":
        transformer = {"vace_layers": [0], "vace_in_channels": 96} | transformer
    if how.get("boundary_ratio"):
        extra["transformer_2"] = wan_transformer(cls, **transformer)
    scheduler = how.pop("scheduler", unipc)
    return getattr(diffusers, kind)(
        tokenizer=tokenizer(), text_encoder=umt5(), vae=vae, scheduler=scheduler(),
        transformer=wan_transformer(cls, **transformer), **extra, **how,
    )  # fmt: skip


def skyreels(**how: Any) -> Any:
    transformer = wan_transformer(
        diffusers.SkyReelsV2Transformer3DModel, qk_norm="rms_norm_across_heads", inject_sample_info=True, freq_dim=256,
        **how,
    )  # fmt: skip
    return diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=tokenizer(), text_encoder=umt5(), vae=wan_vae(), scheduler=unipc(), transformer=transformer
    )


def ltx(kind: str, *, timestep_conditioning: bool = False, heads: int = 2) -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        timestep_conditioning=timestep_conditioning,
    )  # fmt: skip
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=heads, attention_head_dim=16, cross_attention_dim=16 * heads,
        num_layers=2, caption_channels=DIM,
    )  # fmt: skip
    vae.latents_mean, vae.latents_std = torch.linspace(-0.5, 0.5, 8), torch.linspace(0.5, 2.0, 8)
    scheduler = flow(use_dynamic_shifting=kind != "LTXConditionPipeline", base_shift=0.95, max_shift=2.05, shift=1.0)
    return getattr(diffusers, kind)(
        scheduler=scheduler, vae=vae, text_encoder=t5(), tokenizer=tokenizer(), transformer=transformer
    )


def hunyuan(kind: str, *, way: str | None = None, heads: int = 2) -> Any:
    channels = {"latent_concat": 9}.get(str(way), 4)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=channels, out_channels=4, num_attention_heads=heads, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=way is None,
        text_embed_dim=DIM, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), image_condition_type=way,
    )  # fmt: skip
    texts: dict[str, Any] = {"tokenizer": tokenizer(), "tokenizer_2": tokenizer(), "text_encoder_2": clip_text()}
    if way is None:
        texts["text_encoder"] = transformers.LlamaModel(llama_config())
    else:
        vision = transformers.CLIPVisionConfig(**clip_vision(336, 14))
        config = transformers.LlavaConfig(
            vision_config=vision, text_config=llama_config(), image_token_index=3, pad_token_id=0
        )
        texts["text_encoder"] = transformers.LlavaForConditionalGeneration(config)
        texts["image_processor"] = clip_images(336)
    return getattr(diffusers, kind)(transformer=transformer, vae=vae, scheduler=flow(), **texts)


def hunyuan15(kind: str, *, meanflow: bool = False, heads: int = 2, layers: int = 1) -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1, scaling_factor=0.7
    )
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=heads, attention_head_dim=8, num_layers=layers,
        num_refiner_layers=1,
        mlp_ratio=2, text_embed_dim=DIM, text_embed_2_dim=DIM, image_embed_dim=8, rope_axes_dim=(2, 2, 4),
        target_size=64, task_type="i2v" if "Image" in kind else "t2v", use_meanflow=meanflow,
    )  # fmt: skip
    qwen = transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLTextModel
    config = transformers.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLTextConfig(
        vocab_size=64, hidden_size=DIM, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
    )  # fmt: skip
    extra: dict[str, Any] = {}
    if "Image" in kind:
        vision = transformers.SiglipVisionConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=54, patch_size=2
        )
        extra["image_encoder"] = transformers.SiglipVisionModel(vision)
        extra["feature_extractor"] = transformers.SiglipImageProcessor(size={"height": 54, "width": 54})
    return getattr(diffusers, kind)(
        text_encoder=qwen(config), tokenizer=tokenizer(), transformer=transformer, vae=vae, scheduler=flow(),
        text_encoder_2=t5(), tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0), **extra,
    )  # fmt: skip


def cogvideox(
    kind: str, *, scheduler: str = "CogVideoXDDIMScheduler", pairs: bool = False, rope: bool = True, heads: int = 2
) -> Any:  # fmt: skip
    is_image = "Image" in kind
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=16, in_channels=8 if is_image else 4, out_channels=4,
        time_embed_dim=4, text_embed_dim=DIM, num_layers=2, sample_width=8, sample_height=6, sample_frames=9,
        max_text_seq_length=16, use_rotary_positional_embeddings=rope, patch_size_t=2 if pairs else None,
        patch_bias=not pairs, ofs_embed_dim=4 if pairs and is_image else None,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        invert_scale_latents=pairs,
    )  # fmt: skip
    made = getattr(diffusers, scheduler)(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return getattr(diffusers, kind)(
        tokenizer=tokenizer(), text_encoder=t5(), vae=vae, transformer=transformer, scheduler=made
    )


def svd() -> Any:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, addition_time_embed_dim=32,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=8,
        num_attention_heads=2, projection_class_embeddings_input_dim=96, num_frames=9,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1, timestep_type="continuous",
        use_karras_sigmas=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    vision = transformers.CLIPVisionConfig(**clip_vision(224, 56))
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae, image_encoder=transformers.CLIPVisionModelWithProjection(vision), unet=unet, scheduler=scheduler,
        feature_extractor=clip_images(224),
    )  # fmt: skip


def mochi(*, zeros: bool = False, heads: int = 2) -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=8, num_layers=2, pooled_projection_dim=8, in_channels=12,
        text_embed_dim=DIM, time_embed_dim=4, max_sequence_length=256,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    return diffusers.MochiPipeline(
        scheduler=flow(shift=1.0, invert_sigmas=True), vae=vae, text_encoder=t5(), tokenizer=tokenizer(),
        transformer=transformer, force_zeros_for_empty_prompt=zeros,
    )  # fmt: skip


def save(made: Callable[[], Any], folder: Path, *, seed: int = 0) -> Path:
    """Write a pipeline with weights that are not near zero, and return its folder."""
    torch.manual_seed(seed)
    pipe = made()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
