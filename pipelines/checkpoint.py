"""The state of a denoise loop between two steps, as one safetensors file: another process goes on to the same bits.

A diffusers scheduler is saved whole and without knowing its kind: everything in it but its configuration, which the
process that goes on has loaded itself. Outside of it stand the latents, the number of steps done, the state of a random
generator, and whatever else a family's step carries from one call to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

NOT_STATE = ("_internal_dict",)  # the configuration


@dataclass
class StepState:
    """What is known after `step` steps, besides the scheduler's own state."""

    step: int
    latents: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # carried from step to step by the loop


def pack(state: StepState, scheduler: Any, generator: torch.Generator | None = None) -> bytes:
    """The state as bytes; tensors are copied.

    Raises:
        TypeError: the scheduler holds something that is neither a tensor, an array, a list nor a plain value.
    """
    tensors = {"latents": _copy(state.latents), **{f"extra.{k}": _copy(v) for k, v in state.extra.items()}}
    if generator is not None:
        tensors["generator"] = generator.get_state()
    shapes: dict[str, Any] = {}
    names = [name for name in vars(scheduler) if name not in NOT_STATE]
    for name in names:
        _flatten(f"scheduler.{name}", getattr(scheduler, name), tensors, shapes)
    told = {"step": state.step, "scheduler": type(scheduler).__name__, "names": names, "shapes": shapes}
    packed: bytes = save(tensors, metadata={"state": json.dumps(told)})
    return packed


def unpack(data: bytes, scheduler: Any, *, device: str, generator: torch.Generator | None = None) -> StepState:
    """Bring a scheduler (and generator) to a packed state; its timesteps must have been set, so that devices are known.

    Raises:
        ValueError: the state is of another kind of scheduler.
    """
    told = json.loads(_metadata(data)["state"])
    if told["scheduler"] != type(scheduler).__name__:
        raise ValueError(f"the state must be of a {type(scheduler).__name__}, got {told['scheduler']}")
    tensors = load(data)
    for name in told["names"]:  # some appear with the first step only
        before = vars(scheduler).get(name)
        where = before.device if isinstance(before, torch.Tensor) else torch.device(device)
        setattr(scheduler, name, _restore(f"scheduler.{name}", tensors, told["shapes"], where))
    if generator is not None and "generator" in tensors:
        generator.set_state(tensors["generator"])
    extra = {k.removeprefix("extra."): v.to(device) for k, v in tensors.items() if k.startswith("extra.")}
    return StepState(told["step"], tensors["latents"].to(device), extra)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _flatten(name: str, value: Any, tensors: dict[str, torch.Tensor], shapes: dict[str, Any]) -> None:
    if isinstance(value, torch.Tensor):
        tensors[name], shapes[name] = _copy(value), ["tensor"]
    elif isinstance(value, np.ndarray):
        tensors[name], shapes[name] = torch.from_numpy(value.copy()), ["array"]
    elif isinstance(value, np.generic):
        shapes[name] = ["value", value.item()]
    elif isinstance(value, list | tuple):
        shapes[name] = ["list", len(value)]
        for i, item in enumerate(value):
            _flatten(f"{name}.{i}", item, tensors, shapes)
    elif value is None or isinstance(value, bool | int | float | str):
        shapes[name] = ["value", value]
    else:
        raise TypeError(f"{name} is a {type(value).__name__}, which cannot be kept between steps")


def _restore(name: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, Any], device: torch.device) -> Any:
    kind, *told = shapes[name]
    if kind == "tensor":
        return tensors[name].to(device)
    if kind == "array":
        return tensors[name].numpy()
    if kind == "list":
        return [_restore(f"{name}.{i}", tensors, shapes, device) for i in range(told[0])]
    return told[0]


def _metadata(data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
