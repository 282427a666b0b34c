"""All families by their pipelines' class names, each from a file of its own in this folder.

Native sizes, rates, steps and guidance are the defaults of the stock diffusers pipelines, or of the models' own
repositories where noted.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from farm.models.card import Configs, ModelCard
from farm.models.cards.cogvideox import cogvideox_card
from farm.models.cards.hunyuan import hunyuan_card
from farm.models.cards.hunyuan15 import hunyuan15_card
from farm.models.cards.ltx import ltx_card
from farm.models.cards.mochi import mochi_card
from farm.models.cards.skyreels import skyreels_card
from farm.models.cards.svd import svd_card
from farm.models.cards.wan import wan_card

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
