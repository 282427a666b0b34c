"""Small random checkpoints in the real diffusers folder format, made from diffusers' own classes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = tuple("a the red blue green ball cube rolls bounces over grass sand at sunset night day".split())  # noqa: SIM905


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_transformer(*, layers: int = 2, heads: int = 2) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=heads, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=layers, cross_attn_norm=True, rope_max_seq_len=64,
    )  # fmt: skip


def make_wan(
    folder: Path, *, scheduler: str = "unipc", two_experts: bool = False, per_token: bool = False, layers: int = 2,
    heads: int = 2, seed: int = 0,
) -> Path:  # fmt: skip
    """Write a random Wan checkpoint (about 1 MB) and return its folder."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    text = UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4))
    schedulers = {
        "unipc": lambda: UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    pipe = WanPipeline(
        tokenizer=tiny_tokenizer(), text_encoder=text.eval(), vae=vae.eval(), scheduler=schedulers[scheduler](),
        transformer=tiny_transformer(layers=layers, heads=heads).eval(),
        transformer_2=tiny_transformer(layers=layers, heads=heads).eval() if two_experts else None,
        boundary_ratio=0.875 if two_experts else None, expand_timesteps=per_token,
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
