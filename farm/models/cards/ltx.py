"""LTX-Video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from farm.models.card import Configs, ModelCard, dit_facts
from farm.models.frame_rule import FrameRule
from farm.task import Settings

# Names of the original repository's layers (Lightricks/LTX-Video, ltx_video/models/transformers/transformer3d.py).
LORA_NAMES = (
    ("patchify_proj", ("proj_in",)), ("adaln_single.linear", ("time_embed.linear",)),
    ("adaln_single.emb.timestep_embedder.linear_1", ("time_embed.emb.timestep_embedder.linear_1",)),
    ("adaln_single.emb.timestep_embedder.linear_2", ("time_embed.emb.timestep_embedder.linear_2",)),
)  # fmt: skip
LTX = ModelCard(
    name="ltx", family="ltx", modes=("text", "image", "frames"), contexts=("frames", "last_frame"),
    rule=FrameRule(8, 1), size=(704, 512), fps=25.0, fps_conditioned=True, multiple_px=32, spatial_factor=32,
    latent_channels=128, steps=50, guidance=3.0, chunk_frames=161, overlap_frames=17, max_tokens=128,
    conditioning="context", draws_condition=True, splits=("sequence", "guidance"), lora_names=LORA_NAMES,
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
