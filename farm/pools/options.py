"""How a pool fits models to its hardware. What may change bits is part of the numerics, and so of content keys.

| option | effect on what is made |
|---|---|
| offload, vae_slicing | none |
| compile, attention | in the last bits |
| vae_tiling | at the edges of tiles |
| quantize, cache | visible, a little |
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from farm.document import Strict

Numbers = Literal["int8", "fp8", "nf4"]  # of weights; arithmetic stays in the pool's dtype
ON_CPU = ("native", "_native_math", "flex")  # attention backends
PACKAGES = {  # that an option's value needs besides diffusers
    "int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes", "flash": "flash_attn", "flash_varlen": "flash_attn",
    "_flash_3": "flash_attn_interface", "sage": "sageattention", "xformers": "xformers",
}  # fmt: skip


EXTRAS = {"torchao": "longtake[quantize]"}  # what installs a package with the farm


class Quantize(Strict):
    """Weights in fewer bits: int8 and fp8 by torchao, nf4 by bitsandbytes."""

    transformer: Numbers | None = None
    text_encoder: Numbers | None = None


class StepCache(Strict):
    """Leave out what hardly changes from one step to the next, by diffusers' caches."""

    kind: Literal["first_block", "taylorseer"]
    threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.05
    """first_block: how much the first block's residual may change while the others are left out."""
    interval: Annotated[int, Field(ge=2, le=100)] = 5
    """taylorseer: every how many steps nothing is left out."""


class Options(Strict):
    """Means of diffusers, accelerate and torch."""

    offload: Literal["none", "model", "group", "sequential"] = "none"
    """Keep weights on the host: a whole component's, a block's or a layer's come to the GPU when needed."""
    vae_slicing: bool = False
    vae_tiling: bool = False
    quantize: Quantize = Quantize()
    attention: Literal[
        "native", "_native_math", "_native_flash", "_native_efficient", "_native_cudnn", "flex", "flash",
        "flash_varlen", "_flash_3", "sage", "xformers",
    ] | None = None  # fmt: skip
    compile: bool = False
    """torch.compile of the blocks that a transformer repeats."""
    cache: StepCache | None = None

    def numerics_of(self, stage: str) -> tuple[tuple[str, Any], ...]:
        """What of it may change what a stage makes; nothing where nothing was asked for."""
        cache: tuple[tuple[str, Any], ...] = ()
        if self.cache:  # frozen strings, as all that enters keys (farm/keys.py)
            cache = (
                ("kind", self.cache.kind), ("threshold", self.cache.threshold), ("interval", self.cache.interval),
            )  # fmt: skip
        by_stage: dict[str, dict[str, Any]] = {
            "encode": {"quantize": self.quantize.text_encoder},
            "denoise": {
                "quantize": self.quantize.transformer, "attention": self.attention, "compile": self.compile,
                "cache": cache,
            },
            "decode": {"tiling": self.vae_tiling},
        }  # fmt: skip
        return tuple((name, value) for name, value in by_stage.get(stage, {}).items() if value)

    def placement_of(self, stage: str) -> dict[str, Any]:
        """The rest, which changes nothing that a stage makes."""
        is_placed = self.offload != "none" and stage in ("encode", "denoise", "decode")
        made: dict[str, Any] = {"offload": self.offload} if is_placed else {}
        return made | ({"slicing": True} if self.vae_slicing and stage == "decode" else {})

    def faults(self, stages: Iterable[str], *, has_gpus: bool) -> list[str]:
        """What of it cannot work in a pool, each as the end of a sentence that begins with the pool's options."""
        served = set(stages)
        asked = [
            ("vae_tiling", self.vae_tiling, "decode"), ("vae_slicing", self.vae_slicing, "decode"),
            ("compile", self.compile, "denoise"), ("attention", self.attention, "denoise"),
            ("cache", self.cache, "denoise"), ("quantize.transformer", self.quantize.transformer, "denoise"),
            ("quantize.text_encoder", self.quantize.text_encoder, "encode"),
        ]  # fmt: skip
        found = [
            f"{key} must stand in a pool that serves {stage}" for key, v, stage in asked if v and stage not in served
        ]
        if not has_gpus:
            fast = [n for n in (self.quantize.transformer, self.quantize.text_encoder) if n in ("fp8", "nf4")]
            found += [f"quantize must be int8 in a pool without GPUs, got {fast[0]}"] if fast else []
            found += ["offload must be none in a pool without GPUs"] if self.offload != "none" else []
            if self.attention and self.attention not in ON_CPU:
                able = ", ".join(ON_CPU)
                found.append(f"attention must be one of {able} in a pool without GPUs, got {self.attention}")
        return found

    @property
    def packages(self) -> list[str]:
        """What must be installed for it."""
        asked = (self.quantize.transformer, self.quantize.text_encoder, self.attention)
        return list(dict.fromkeys(PACKAGES[a] for a in asked if a in PACKAGES))


def missing_packages(options: Iterable[Options]) -> list[str]:
    """What options need and this machine has not."""
    needed = dict.fromkeys(p for one in options for p in one.packages)
    return [p for p in needed if importlib.util.find_spec(p) is None]
