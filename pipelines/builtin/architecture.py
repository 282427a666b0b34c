"""The shapes of the built-in model: ordinary diffusers and transformers classes at small sizes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipelines.builtin.world import SYNONYMS, VOCABULARY

LATENT_CHANNELS = 16
TEXT_DIM = 64


def autoencoder(**changes: Any) -> AutoencoderKLWan:
    """Spatial factor 8 (a 2x2 patch, then two halvings), temporal factor 4."""
    shape: dict[str, Any] = dict(
        base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4], num_res_blocks=1, patch_size=2, in_channels=12,
        out_channels=12, temperal_downsample=[True, True], scale_factor_spatial=8, scale_factor_temporal=4,
        latents_mean=[0.0] * LATENT_CHANNELS, latents_std=[1.0] * LATENT_CHANNELS,
    )  # fmt: skip
    return AutoencoderKLWan(**(shape | changes))


def transformer() -> WanTransformer3DModel:
    """120 tokens for 17 frames of 96x64: 5 latent frames of 4 x 6 patches."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=32, in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, text_dim=TEXT_DIM, freq_dim=128, ffn_dim=384, num_layers=5, rope_max_seq_len=512,
    )  # fmt: skip


def text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=128, d_model=TEXT_DIM, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            relative_attention_num_buckets=16, relative_attention_max_distance=32, dropout_rate=0.0,
        )
    )  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; before they are split, synonyms become their word and other words go."""
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *VOCABULARY])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    replaced = [normalizers.Replace(_whole_word(a), b) for a, b in SYNONYMS.items()]
    known = "|".join(VOCABULARY)
    others = normalizers.Replace(Regex(rf"\b(?!(?:{known})\b)\w+\b"), "")
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), *replaced, others])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _whole_word(word: str) -> Any:
    return Regex(rf"\b{word}\b")


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
