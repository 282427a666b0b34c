"""LoRAs on a loaded transformer: each is loaded once, by diffusers' and peft's own means, and switched on and off.

The base weights are never changed, so a task without LoRAs has the bits of a replica that has never seen one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.errors import InputError
from farm.task import Lora
from pipelines.stage import Artifact, as_path

MAX_KEPT = 8  # adapters on one transformer; the ones used longest ago go first


def use_loras(pipeline: str, components: Mapping[str, Any], loras: Sequence[Lora], files: Sequence[Artifact]) -> None:
    """Make exactly these LoRAs work, in this order.

    Args:
        pipeline: diffusers' class that knows the formats of the family's LoRAs.
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
                _load(pipeline, module, path, _name(lora))
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


def _load(pipeline: str, module: Any, path: Path, name: str) -> None:
    import diffusers

    kind = getattr(diffusers, pipeline)
    needed = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty]
    pipe = kind(**dict.fromkeys(needed[1:]) | {"transformer": module})  # with nothing but the transformer
    weights: Any = kind.lora_state_dict(str(path.parent), weight_name=path.name, local_files_only=True)
    weights = weights[0] if isinstance(weights, tuple) else weights
    changed = {key.removeprefix("transformer.").split(".lora_")[0] for key in weights if key.startswith("transformer.")}
    known = {n.replace(".base_layer", "") for n, _ in module.named_modules()}
    foreign = sorted(changed - known)
    if foreign or not changed:
        what = f"it would change {foreign[0]}, which the model lacks" if foreign else "it changes nothing of it"
        raise InputError(f"a LoRA must fit {type(module).__name__}: {what}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are what is wanted
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
    module.requires_grad_(False)
