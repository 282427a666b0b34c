"""Model cards: what the planner must know of a model where torch is not installed.

A card is the data of a family (found from `_class_name` in model_index.json) with what the checkpoint's own JSON files
say filled in. Cards hold facts only; the tensors' side of a family is in pipelines/families/. Native sizes, rates,
steps and guidance are the defaults of the stock diffusers pipelines, or of the models' own repositories where noted.
"""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .chunks import FrameRule
from .task import Settings

Matrix = tuple[tuple[float, ...], ...]

# Latent channel to RGB, for previews without a VAE. Source: ComfyUI, comfy/latent_formats.py, class Wan21.
WAN21_RGB: Matrix = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
    (-0.1835, -0.0868, -0.3360),
)  # fmt: skip


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


WAN = ModelCard(
    name="wan", family="wan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(832, 480), fps=16.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=5.0, chunk_frames=81, overlap_frames=5,
    max_tokens=512, halo_latents=39, latent_rgb=WAN21_RGB, splits=("sequence", "guidance"),
    published=(
        ("Wan2.1 1.3B", 5.7, 1.4, 0.13), ("Wan2.1 14B", 5.7, 14.3, 0.13), ("Wan2.2 A14B", 5.7, 28.6, 0.13),
        ("Wan2.2 TI2V 5B", 5.7, 5.0, 0.7),
    ),
)  # fmt: skip


def wan_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Wan 2.1 and 2.2: text, image (and last image), VACE, two experts, timesteps per token.

    Wan2.2's official guidance (its repository's configs): T2V-A14B 4.0 for high noise and 3.0 for low noise, I2V-A14B
    3.5 for both; TI2V-5B is the checkpoint with `expand_timesteps`: 24 fps, 121 frames, 1280x704.
    """
    kind, vae, transformer = index["_class_name"], configs["vae"], configs["transformer"]
    spatial, temporal = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
    patch = transformer.get("patch_size", (1, 2, 2))
    boundary, per_token = index.get("boundary_ratio"), bool(index.get("expand_timesteps", False))
    if boundary is not None and not 0 <= float(boundary) <= 1:
        raise ValueError(f"boundary_ratio must be from 0 to 1, got {boundary}")
    if min(int(spatial), int(temporal)) < 1:
        raise ValueError(f"scale factors must be at least 1, got {spatial} and {temporal}")
    settings: dict[str, Settings] = {"denoise": (("boundary_ratio", boundary), ("expand_timesteps", per_token))}
    channels = vae.get("z_dim", 16)
    heads, dim = transformer.get("num_attention_heads", 40), transformer.get("attention_head_dim", 128)
    facts = dit_facts(
        transformer, heads=40, head_dim=128, blocks=transformer.get("num_layers", 40), channels=channels,
        patch=tuple(patch), mlp=transformer.get("ffn_dim", 13824) / (heads * dim), attentions=2,
    )  # fmt: skip
    card = replace(
        WAN,
        **facts,
        rule=FrameRule(temporal, 1),
        spatial_factor=spatial,
        multiple_px=spatial * max(patch[1], patch[2]),
        latent_channels=channels,
        settings=settings,
        halo_latents=wan_halo_latents(vae),
        latent_rgb=WAN21_RGB if channels == 16 else (),
    )
    if boundary is not None:
        high, low = (3.5, 3.5) if kind == "WanImageToVideoPipeline" else (4.0, 3.0)
        denoise = ("transformer", "transformer_2", "scheduler")
        card = replace(card, steps=40, guidance=high, guidance_low=low, components=CORE | {"denoise": denoise})
    if per_token:  # the first latent frames may be given; trained with one
        card = replace(card, size=(1280, 704), fps=24.0, chunk_frames=121, modes=("text", "image", "frames"),
                       contexts=("frames", "latents", "last_frame"), conditioning="context")  # fmt: skip
    elif kind == "WanImageToVideoPipeline":
        embed = {"embed": ("image_processor", "image_encoder")} if transformer.get("image_dim") else {}
        modes: tuple[str, ...] = ("image", "first_last", "frames")
        contexts: tuple[str, ...] = ("frames", "last_frame")
        if transformer.get("pos_embed_seq_len"):  # embeddings of two pictures, never of one
            modes, contexts = ("first_last",), ()
        elif embed:
            modes = ("image", "frames")
        card = replace(
            card, modes=modes, contexts=contexts, conditioning="whole",
            blends=False, components={**card.components, **embed},
            settings=settings | {"vae": (("condition", "mask"),)},
        )  # fmt: skip
    elif kind == "WanVACEPipeline":
        card = replace(
            card, modes=("text", "image", "first_last", "frames", "reference"), contexts=("frames", "last_frame"),
            conditioning="whole", settings=settings | {"vae": (("condition", "vace"), ("patch", patch[1]))},
        )  # fmt: skip
    return card


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


def wan_halo_latents(vae: Mapping[str, Any]) -> int:
    """How many latent frames the causal decoder of an AutoencoderKLWan looks back, rounded up, plus one.

    Every causal convolution of 3 looks two frames back, at the rate of its level: conv_in and two residual blocks in
    the middle at the latent rate, num_res_blocks + 1 blocks a level with two convolutions each, one more in each
    temporal upsampling, and conv_out. Wan2.1 (2 blocks, 4 levels, temporal upsampling after two): 37.5.
    """
    blocks, levels = int(vae.get("num_res_blocks", 2)), len(vae.get("dim_mult", (1, 2, 4, 4)))
    doubles = list(reversed(vae.get("temperal_downsample", (False, True, True))))
    rate, lookback = 1, 2.0 + 8.0
    for level in range(levels):
        lookback += 4 * (blocks + 1) / rate
        if level < len(doubles) and doubles[level]:
            lookback += 2 / rate
            rate *= 2
    return math.ceil(lookback + 2 / rate) + 1


LTX = ModelCard(
    name="ltx", family="ltx", modes=("text", "image", "frames"), contexts=("frames", "last_frame"),
    rule=FrameRule(8, 1), size=(704, 512), fps=25.0, fps_conditioned=True, multiple_px=32, spatial_factor=32,
    latent_channels=128, steps=50, guidance=3.0, chunk_frames=161, overlap_frames=17, max_tokens=128,
    conditioning="context", draws_condition=True, splits=("sequence", "guidance"),
    published=(("LTX-Video 2B", 4.8, 1.9, 0.9), ("LTX-Video 13B", 4.8, 13.0, 1.3)),
)  # fmt: skip


def ltx_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """LTX-Video; checkpoints of LTXConditionPipeline (0.9.7 and later) take every mode through that one."""
    vae, is_condition = configs["vae"], index["_class_name"] == "LTXConditionPipeline"
    num_halvings = sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
    spatial = vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * 2**num_halvings
    temporal = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * 2**num_halvings
    told: Settings = (("pipeline", "condition" if is_condition else "plain"),)
    transformer, channels = configs["transformer"], vae.get("latent_channels", 128)
    facts = dit_facts(
        transformer, heads=32, head_dim=64, blocks=transformer.get("num_layers", 28), channels=channels,
        patch=(transformer.get("patch_size_t", 1), *[transformer.get("patch_size", 1)] * 2), attentions=2,
    )  # fmt: skip
    more = ("first_last", "keyframes") if is_condition else ()
    return replace(
        LTX, **facts, modes=(*LTX.modes, *more), rule=FrameRule(temporal, 1),
        multiple_px=spatial, spatial_factor=spatial, latent_channels=channels,
        max_tokens=256 if is_condition else 128,
        settings={"text": told, "vae": told, "denoise": (*told, ("spatial", spatial), ("temporal", temporal))},
    )  # fmt: skip


HUNYUAN = ModelCard(
    name="hunyuan", family="hunyuan", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(1280, 720), fps=24.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=6.0, chunk_frames=129, overlap_frames=33,
    max_tokens=256, components=CORE | {"text": TWO_TEXTS}, is_guided=False, splits=("sequence",), splits_text="masked",
    published=(("HunyuanVideo", 8.2, 12.8, 0.25),),
)  # fmt: skip


def hunyuan_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """HunyuanVideo: guidance is embedded. Its image variants know two ways to be given the first frame."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial, way = vae.get("spatial_compression_ratio", 8), transformer.get("image_condition_type")
    told: Settings = (("way", way),)
    blocks = transformer.get("num_layers", 20) + transformer.get("num_single_layers", 40)
    side, channels = transformer.get("patch_size", 2), vae.get("latent_channels", 16)
    facts = dit_facts(
        transformer, heads=24, head_dim=128, blocks=blocks, channels=channels,
        patch=(transformer.get("patch_size_t", 1), side, side),
    )  # fmt: skip
    card = replace(
        HUNYUAN, **facts, rule=FrameRule(vae.get("temporal_compression_ratio", 4), 1), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=channels, settings={"denoise": told},
    )  # fmt: skip
    if index["_class_name"] == "HunyuanVideoPipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), guidance=1.0, blends=False, text_sees_image=True,
        conditioning="first", settings={"denoise": told, "text": told},
        components={**card.components, "text": (*TWO_TEXTS, "image_processor")},
        lead_latents=1 if way == "latent_concat" else 0, is_lead_decoded=True,
        splits=() if way == "token_replace" else card.splits,  # there blocks count the first frame's tokens
    )  # fmt: skip


HUNYUAN15 = replace(
    HUNYUAN, name="hunyuan15", family="hunyuan15", size=(848, 480), chunk_frames=121, spatial_factor=16,
    latent_channels=32, max_tokens=1000, is_guided=True, takes_loras=False, splits=("ulysses",), splits_text="",
    components={**HUNYUAN.components, "denoise": ("transformer", "scheduler", "guider")},
    published=(("HunyuanVideo-1.5", 8.0, 8.3, 1.2),),
)  # fmt: skip


def hunyuan15_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """HunyuanVideo-1.5; its own pipeline takes sizes near 16:9 of `target_size` squared pixels."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial, side = vae.get("spatial_compression_ratio", 16), transformer.get("patch_size", 1)
    facts = dit_facts(
        transformer, heads=16, head_dim=128, blocks=transformer.get("num_layers", 54),
        channels=transformer.get("out_channels", 32), patch=(transformer.get("patch_size_t", 1), side, side),
    )  # fmt: skip
    card = replace(
        HUNYUAN15, **facts, rule=FrameRule(vae.get("temporal_compression_ratio", 4), 1), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=vae.get("latent_channels", 32),
        guidance=configs["guider"].get("guidance_scale", HUNYUAN15.guidance),
    )  # fmt: skip
    if index["_class_name"] == "HunyuanVideo15Pipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), blends=False, conditioning="first",
        components={**card.components, "embed": ("image_encoder", "feature_extractor")},
    )  # fmt: skip


COGVIDEOX = ModelCard(
    name="cogvideox", family="cogvideox", modes=("text",), contexts=(), rule=FrameRule(4, 1), size=(720, 480), fps=8.0,
    multiple_px=16, spatial_factor=8, latent_channels=16, steps=50, guidance=6.0, chunk_frames=49, overlap_frames=17,
    max_tokens=226, splits=("sequence", "guidance"), splits_text="fixed",
    published=(("CogVideoX 2B", 4.8, 1.7, 0.22), ("CogVideoX 5B", 4.8, 5.6, 0.22)),
)  # fmt: skip


def cogvideox_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """CogVideoX 2B and 5B (49 frames at 8 fps), and 1.5 (81 frames at 16 fps), which takes latent frames in pairs."""
    vae, transformer = configs["vae"], configs["transformer"]
    spatial = 2 ** (len(vae.get("block_out_channels", (128, 256, 256, 512))) - 1)
    temporal, is_paired = vae.get("temporal_compression_ratio", 4), transformer.get("patch_size_t") is not None
    width, height = transformer.get("sample_width", 90) * spatial, transformer.get("sample_height", 60) * spatial
    side, channels = transformer.get("patch_size", 2), vae.get("latent_channels", 16)
    facts = dit_facts(
        transformer, heads=30, head_dim=64, blocks=transformer.get("num_layers", 30), channels=channels,
        patch=(transformer.get("patch_size_t") or 1, side, side),
    )  # fmt: skip
    card = replace(
        COGVIDEOX, **facts, rule=FrameRule(temporal, 1), size=(width, height), spatial_factor=spatial,
        multiple_px=spatial * side, latent_channels=channels,
        chunk_frames=81 if is_paired else 49, fps=16.0 if is_paired else 8.0, even_latents=is_paired,
        blends=not is_paired, max_tokens=transformer.get("max_text_seq_length", 226),
        fixed_size=bool(transformer.get("use_learned_positional_embeddings", False)),
    )  # fmt: skip
    if index["_class_name"] == "CogVideoXPipeline":
        return card
    return replace(
        card, modes=("image",), contexts=("last_frame",), blends=False, conditioning="first", draws_condition=True
    )  # fmt: skip


def skyreels_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """SkyReels-V2 diffusion forcing. Noise of 20 thousandths on the history is what its repository advises."""
    card = wan_card({"_class_name": "WanPipeline"}, configs)
    return replace(
        card, name="skyreels", family="skyreels", modes=("text", "image", "frames"), conditioning="context",
        contexts=("latents", "frames", "last_frame"), size=(960, 544), fps=24.0, fps_conditioned=True, guidance=6.0,
        chunk_frames=97, overlap_frames=17, settings={"denoise": (("addnoise_condition", 20),)},
        published=(("SkyReels-V2 1.3B", 5.7, 1.4, 0.13), ("SkyReels-V2 14B", 5.7, 14.3, 0.13)),
    )  # fmt: skip


SVD = ModelCard(
    name="svd", family="svd", modes=("image",), contexts=("last_frame",), rule=FrameRule(1, 0), size=(1024, 576),
    fps=7.0, fps_conditioned=True, multiple_px=64, spatial_factor=8, latent_channels=4, steps=25, guidance=3.0,
    chunk_frames=25, overlap_frames=1, max_tokens=0, conditioning="first", blends=False, draws_condition=True,
    takes_loras=False, tiles=False, published=(("Stable Video Diffusion", 0.6, 1.5, 0.1),),
    components={
        "embed": ("image_encoder", "feature_extractor"), "denoise": ("unet", "scheduler"), "vae": ("vae",)
    },
)  # fmt: skip


def svd_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Stable Video Diffusion: the stock pipeline's motion and noise, and 8 frames decoded at a time."""
    vae, unet = configs["vae"], configs["unet"]
    spatial = 2 ** (len(vae.get("block_out_channels", (128, 256, 512, 512))) - 1)
    noise: Settings = (("noise_aug_strength", 0.02),)
    return replace(
        SVD, spatial_factor=spatial, multiple_px=spatial * 2 ** (len(unet.get("block_out_channels", (1,) * 4)) - 1),
        chunk_frames=unet.get("num_frames", 25), latent_channels=vae.get("latent_channels", 4),
        settings={
            "vae": (*noise, ("decode_chunk_size", 8)),
            "denoise": (*noise, ("motion_bucket_id", 127), ("spatial", spatial)),
        },
    )  # fmt: skip


MOCHI = ModelCard(
    name="mochi", family="mochi", modes=("text",), contexts=(), rule=FrameRule(6, 1), size=(848, 480), fps=30.0,
    multiple_px=16, spatial_factor=8, latent_channels=12, steps=64, guidance=4.5, chunk_frames=85, overlap_frames=19,
    max_tokens=256, min_steps=2, splits=("ulysses", "guidance"), published=(("Mochi 1", 4.8, 10.0, 0.46),),
)  # fmt: skip


def mochi_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """Mochi 1; 85 frames, as in diffusers' example of it."""
    told: Settings = (("force_zeros_for_empty_prompt", bool(index.get("force_zeros_for_empty_prompt", False))),)
    transformer, channels = configs["transformer"], configs["vae"].get("latent_channels", 12)
    side = transformer.get("patch_size", 2)
    facts = dit_facts(
        transformer, heads=24, head_dim=128, blocks=transformer.get("num_layers", 48), channels=channels,
        patch=(1, side, side),
    )  # fmt: skip
    return replace(MOCHI, **facts, multiple_px=8 * side, latent_channels=channels, settings={"text": told})


WITH_UNET = ("StableVideoDiffusionPipeline",)  # where others have a transformer
Builder = Callable[[Mapping[str, Any], Configs], ModelCard]
PIPELINES: dict[str, Builder] = {  # by `_class_name` of model_index.json
    "WanPipeline": wan_card, "WanImageToVideoPipeline": wan_card, "WanVACEPipeline": wan_card,
    "LTXPipeline": ltx_card, "LTXImageToVideoPipeline": ltx_card, "LTXConditionPipeline": ltx_card,
    "HunyuanVideoPipeline": hunyuan_card, "HunyuanVideoImageToVideoPipeline": hunyuan_card,
    "HunyuanVideo15Pipeline": hunyuan15_card, "HunyuanVideo15ImageToVideoPipeline": hunyuan15_card,
    "CogVideoXPipeline": cogvideox_card, "CogVideoXImageToVideoPipeline": cogvideox_card,
    "SkyReelsV2DiffusionForcingPipeline": skyreels_card,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels_card,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": skyreels_card,
    "StableVideoDiffusionPipeline": svd_card, "MochiPipeline": mochi_card,
}  # fmt: skip


@functools.cache
def stock_cards() -> dict[str, ModelCard]:
    """The card of each pipeline class with the stock configuration of its models."""
    return {kind: read_card({"_class_name": kind}, defaultdict(dict)) for kind in PIPELINES}


def read_card(index: Mapping[str, Any], configs: Configs) -> ModelCard:
    """The card of a checkpoint, from its model_index.json and its components' configurations."""
    return PIPELINES[index["_class_name"]](index, configs)


BUILTIN_WORDS = (
    "red orange yellow green blue purple white ball cube cone car rolls left right bounces floats spins stands "
    "grass sand snow road day sunset night camera pans zooms in a an the over on at continued "
    "crimson scarlet gold golden violet azure sphere box block pyramid automobile vehicle roll rolling drives "
    "bounce bouncing jumps float floating hovers spin spinning turns stand standing rests lawn meadow desert beach "
    "street asphalt noon daylight dusk evening midnight pan panning zoom zooming"
)

# What the built-in model changes of its family's card.
BUILTIN: dict[str, Any] = {
    "name": "builtin", "size": (96, 64), "fps": 8.0, "steps": 20, "guidance": 3.0, "chunk_frames": 17, "max_tokens": 32,
    "contexts": ("latents", "frames", "last_frame"), "modes": ("text", "image", "frames"), "middle_mark": "continued",
    "vocabulary": tuple(BUILTIN_WORDS.split()),
    # least squares over 60 held-out clips of its autoencoder, with noise of 0.5 on the latents, as they are noisy when
    # shown; explains 57 % of the variance of 8x8 blocks
    "latent_rgb": (
        (-0.048, -0.024, 0.003), (-0.014, -0.025, -0.045), (-0.113, -0.092, -0.059), (-0.052, -0.06, -0.065),
        (0.137, 0.137, 0.132), (0.076, 0.053, 0.045), (-0.004, -0.014, -0.005), (0.017, 0.002, 0.015),
        (-0.047, -0.029, -0.028), (0.035, 0.009, -0.018), (-0.1, -0.075, -0.024), (-0.051, -0.022, 0.012),
        (-0.064, -0.069, -0.104), (-0.043, -0.031, -0.035), (0.085, 0.05, 0.02), (-0.059, -0.049, -0.029),
        (-0.153, -0.204, -0.14),
    ),
}  # fmt: skip
