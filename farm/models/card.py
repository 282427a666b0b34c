"""A model card: what the planner must know of a model where torch is not installed.

It is the data of a family (found from `_class_name` in model_index.json) with what the checkpoint's own JSON files say
filled in, by the family's file in farm/models/cards/. Cards hold facts only; the tensors' side of a family is in
pipelines/families/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from farm.models.frame_rule import FrameRule
from farm.task import Settings

Matrix = tuple[tuple[float, ...], ...]
Configs = Mapping[str, Mapping[str, Any]]  # each component's own JSON file
TEXT, TWO_TEXTS = ("tokenizer", "text_encoder"), ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
CORE = {"text": TEXT, "denoise": ("transformer", "scheduler"), "vae": ("vae",)}


@dataclass(frozen=True)
class ModelCard:
    """What a model can do and what it expects."""

    name: str
    family: str
    modes: tuple[str, ...]  # text | image | first_last | frames | keyframes | reference
    contexts: tuple[str, ...]  # kinds of context, strongest first: latents | frames | last_frame
    rule: FrameRule
    size: tuple[int, int]  # native width and height, px
    fps: float
    multiple_px: int  # width and height must be multiples of it: VAE factor x patch
    spatial_factor: int
    latent_channels: int
    steps: int
    guidance: float
    chunk_frames: int
    overlap_frames: int
    max_tokens: int  # of a prompt
    components: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CORE)  # text | embed | vae | denoise
    settings: Mapping[str, Settings] = field(default_factory=dict)  # by the same names: the family's own constants
    halo_latents: int | None = None  # that a decoder looks back; None: it takes a whole stream at once
    conditioning: str = ""  # what known frames become: context (clean latents), first (latents), whole (a condition)
    blends: bool = True  # whether chunks can be generated together from text alone
    is_guided: bool = True  # by a negative prompt; else guidance is a number that the model is told
    draws_condition: bool = False  # known frames are encoded to a sample, not to the mode
    fps_conditioned: bool = False  # whether the model is told the frame rate
    min_steps: int = 1
    guidance_low: float | None = None  # of the low-noise expert; None where there is one transformer
    takes_loras: bool = True
    # the original model's names of layers, and those of diffusers' modules that each became ({n}: number of a block)
    lora_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    lora_optional: tuple[str, ...] = ()  # in names of layers that a LoRA may change and this model may lack
    tiles: bool = True  # whether its autoencoder can decode in tiles
    text_sees_image: bool = False  # the text encoder looks at the first frame
    lead_latents: int = 0  # latent frames that the model generates before the first, and that are cut off
    is_lead_decoded: bool = False  # they are cut off as frames
    fixed_size: bool = False  # other sizes than the native one are not possible
    even_latents: bool = False  # one more latent frame leads where their number is odd
    vocabulary: tuple[str, ...] = ()  # all words that a model with a closed vocabulary knows
    middle_mark: str = ""  # ends a prompt where the chunk lies in the middle of a stream
    # what a gang can share: guidance (its two passes), sequence (tokens; ulysses: those of the video, not by a ring)
    splits: tuple[str, ...] = ()
    splits_text: str = ""  # where the prompt's tokens stand in the video's sequence: fixed number, or masked
    num_heads: int = 0
    width: int = 0  # of the transformer's hidden states
    out_width: int = 0  # of a token of its prediction
    num_blocks: int = 0
    block_weights: int = 0  # of a block
    text_weights: int = 0  # of them, those that tokens of the video do not meet
    patch: tuple[int, int, int] = (1, 1, 1)  # latent frames, rows and columns of a token
    latent_rgb: Matrix = ()  # one row a channel, then the bias
    # published models: name, then about how many billions of parameters encoders, the transformer (both experts) and
    # the autoencoder have; rounded and not counted here: `farm models FOLDER` counts those of a checkpoint
    published: tuple[tuple[str, float, float, float], ...] = ()

    @property
    def has_two_experts(self) -> bool:
        return "transformer_2" in self.components["denoise"]

    def settings_of(self, work: str) -> Settings:
        return self.settings.get(work, ())

    def num_lead(self, num_latents: int, num_references: int) -> int:
        """How many latent frames lead those of a chunk."""
        return self.lead_latents + num_references + (num_latents % 2 if self.even_latents else 0)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that a model with a closed vocabulary does not know."""
        words = re.findall(r"\w+", prompt.lower()) if self.vocabulary else []
        return [w for w in dict.fromkeys(words) if w not in self.vocabulary]


def dit_facts(
    transformer: Mapping[str, Any], *, heads: int, head_dim: int, blocks: int, channels: int,
    patch: tuple[int, int, int], mlp: float = 4.0, attentions: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """What the gang's arithmetic must know of a transformer, from its configuration and the family's stock values.

    Args:
        mlp: width of the hidden layer of a block's MLP, in widths.
        attentions: of a block, each of four square matrices; tokens of the video meet two of one that looks at a text.
    """
    num_heads = int(transformer.get("num_attention_heads", heads))
    width = num_heads * int(transformer.get("attention_head_dim", head_dim))
    return {
        "num_heads": num_heads, "width": width, "num_blocks": blocks, "patch": patch,
        "block_weights": int(width**2 * (4 * attentions + 2 * mlp)), "text_weights": width**2 * 2 * (attentions - 1),
        "out_width": channels * math.prod(patch),
    }  # fmt: skip
