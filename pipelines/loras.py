"""LoRAs on a loaded transformer: each is loaded once, by diffusers' and peft's own means, and switched on and off.

The base weights are never changed, so a task without LoRAs has the bits of a replica that has never seen one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from safetensors.torch import load_file

from farm.errors import InputError
from farm.models.card import ModelCard
from farm.models.loras import Part, fit_lora
from farm.models.safetensors import read_header
from farm.task import Lora
from pipelines.stage import Artifact, as_path

MAX_KEPT = 8  # adapters on one transformer; the ones used longest ago go first
PEFT_METADATA = "lora_adapter_metadata"  # of diffusers' save_lora_weights: the adapter's configuration


def use_loras(card: ModelCard, components: Mapping[str, Any], loras: Sequence[Lora], files: Sequence[Artifact]) -> None:
    """Make exactly these LoRAs work, in this order.

    Args:
        components: with the transformers that they change.
        files: theirs; one is fetched only where it is not loaded yet.
    Raises:
        InputError: a file does not fit the model.
    """
    for target, module in components.items():
        if not target.startswith("transformer"):
            continue
        wanted = [(i, lora) for i, lora in enumerate(loras) if target in lora.targets]
        kept = getattr(module, "peft_config", {})
        for i, lora in wanted:
            if _name(lora) in kept:
                kept[_name(lora)] = kept.pop(_name(lora))  # used last
                continue
            with as_path(files[i], suffix=".safetensors") as path:
                _load(card, module, path, _name(lora))
            kept = module.peft_config
        names = [_name(lora) for _, lora in wanted]
        idle = [name for name in kept if name not in names]
        if gone := idle[: max(0, len(kept) - MAX_KEPT)]:
            module.delete_adapters(gone)
        if names:
            module.enable_lora()
            module.set_adapters(names, [lora.weight for _, lora in wanted])
        elif kept:
            module.disable_lora()


def _name(lora: Lora) -> str:
    return f"lora_{lora.sha256[:16]}"


def _load(card: ModelCard, module: Any, path: Path, name: str) -> None:
    header = read_header(path, place="a LoRA")
    layers = {n.replace(".base_layer", ""): _shape(m) for n, m in module.named_modules() if _has_weight(m)}
    fit = fit_lora(header, layers, card, place="a LoRA")
    tensors = load_file(path)
    state: dict[str, torch.Tensor] = {}
    for layer, parts in fit.layers.items():
        state |= {f"{layer}.{end}": tensor for end, tensor in _as_peft(parts, tensors).items()}
    if any(key.endswith(".lora_B.bias") for key in state):  # peft gives every layer of an adapter a bias, or none
        for layer in fit.layers:
            up = state[f"{layer}.lora_B.weight"]
            state.setdefault(f"{layer}.lora_B.bias", torch.zeros(len(up), dtype=up.dtype))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are what is wanted
        try:
            module.load_lora_adapter(
                state, prefix=None, adapter_name=name, metadata=_metadata(header.metadata), low_cpu_mem_usage=True
            )
        except (TypeError, ValueError, KeyError, RuntimeError) as e:
            raise InputError(f"a LoRA must be one that peft can apply to {type(module).__name__}: {e}") from e
    module.requires_grad_(False)
    _maybe_remove_and_reapply_group_offloading(module)  # its hooks know the layers that there were; as pipelines do


def _has_weight(module: Any) -> bool:
    return isinstance(getattr(module, "weight", None), torch.Tensor)


def _shape(module: Any) -> tuple[int, ...]:
    """Of a layer's weight, which may be stored in pieces or quantized."""
    if hasattr(module, "in_features"):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def _as_peft(parts: Mapping[str, Part], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One layer's tensors by peft's names: what goes down already scaled by alpha over rank, as diffusers does."""

    def read(part: str) -> torch.Tensor:
        tensor, rows = tensors[parts[part].tensor], parts[part].rows
        return tensor[slice(*rows)].contiguous() if rows else tensor

    if "difference" in parts:  # of rank as many as there are rows, so that up is the identity
        down = read("difference")
        up = torch.eye(len(down), dtype=down.dtype).reshape(len(down), len(down), *(1 for _ in down.shape[2:]))
        made = {"lora_A.weight": down, "lora_B.weight": up}
    else:
        down = read("down")
        scale = read("alpha").item() / len(down) if "alpha" in parts else 1.0
        made = {"lora_A.weight": down * scale, "lora_B.weight": read("up")}
    if "bias" in parts:
        made["lora_B.bias"] = read("bias")
    if "magnitude" in parts:
        made["lora_magnitude_vector"] = read("magnitude").flatten()
    return made


def _metadata(told: Mapping[str, str]) -> dict[str, Any] | None:
    """The configuration that diffusers keeps in a file, for the transformer; None where there is none."""
    if PEFT_METADATA not in told:
        return None
    try:
        all_of_it = json.loads(told[PEFT_METADATA])
        made = {k.removeprefix("transformer."): v for k, v in all_of_it.items() if k.startswith("transformer.")}
    except (ValueError, AttributeError, RecursionError) as e:
        raise InputError(f"a LoRA's metadata must be a JSON object: {e}") from None
    return made or None
