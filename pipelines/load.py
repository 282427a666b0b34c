"""Load single components of a diffusers folder, so that a process holds only what its stage needs.

Invariants: only safetensors are opened; weights are copied out of the file, because the alignment of memory-mapped
weights changes bits (measured: first in `time_embedder.linear_1` of Wan on CPU).
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from farm.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "image_processor", "feature_extractor", "guider")
# Where diffusers keeps the classes we use: importing them from there spares its top level (measured: 2 s less).
HOMES = {
    "AutoencoderKLWan": "diffusers.models.autoencoders.autoencoder_kl_wan",
    "WanTransformer3DModel": "diffusers.models.transformers.transformer_wan",
}


def load_component(folder: str, component: str, *, dtype: str, device: str, offload: bool = False) -> Any:
    """Load one component that model_index.json names.

    Args:
        folder: a checkpoint in diffusers format.
        component: "vae", "transformer", "tokenizer", "scheduler" ...
        dtype: of its weights; ignored by components without weights.
        offload: keep the weights on the host, and bring each layer's to the GPU when it is needed: slow, same bits.
    """
    index = json.loads((Path(folder) / "model_index.json").read_text())
    library, name = index[component]
    cls = getattr(importlib.import_module(HOMES.get(name, library)), name)
    path = str(Path(folder) / component)
    if component.startswith(WITHOUT_WEIGHTS):
        return cls.from_pretrained(path)
    module, told = cls.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True)
    lacking = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in told.get(kind, ()))
    if lacking:  # they would be drawn at random, under a key that says nothing of it
        raise InputError(
            f"{path} must hold all weights of {name}: {', '.join(lacking[:3])} are missing or of other shapes"
        )
    module.eval().requires_grad_(False)
    own_memory(module)
    if offload and device != "cpu":
        from diffusers.hooks import apply_group_offloading

        apply_group_offloading(
            module, onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
        return module
    return module.to(device)


def own_memory(module: torch.nn.Module) -> None:
    """Copy all weights out of whatever file they are mapped from."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.clone()


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
