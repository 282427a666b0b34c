"""What a stage puts out must be finite. One NaN turns a film black, quietly, and would be reused for ever.

Weights are looked at only when an output is not finite: a pass over them costs seconds, and good ones need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from farm.errors import InputError, NotFinite


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, components: Mapping[str, Any]) -> None:
    """Refuse what holds a NaN or an infinity.

    Args:
        what: which output of which stage it is, and at which step.
        components: by name; the modules among them have made it.
    Raises:
        InputError: a weight is not finite: the checkpoint, or a LoRA, is at fault.
        NotFinite: all weights are; something has overflowed.
    """
    if all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        return
    for name, module in components.items():
        for weight in bad_weights(module):
            told = f"{name}.{weight} must hold finite numbers, got NaN or infinity"
            raise InputError(f"{told}, which {what} then holds; fetch the file anew, or ask whoever made it")
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for m in components.values() for p in _parameters(m)})
    raise NotFinite(
        f"{what} is not finite although all weights are: an overflow in {', '.join(dtypes) or 'its arithmetic'}; "
        "give the pool dtype bfloat16 or float32"
    )


def bad_weights(module: Any) -> Iterable[str]:
    """The names of stored numbers that are not finite; those of a byte cannot be otherwise.

    Buffers that no file holds are left out: a causal mask is full of infinities.
    """
    if not isinstance(module, torch.nn.Module):
        return
    stored = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    for name, tensor in stored.items():
        wide = tensor.is_floating_point() and tensor.element_size() > 1
        if wide and not bool(torch.isfinite(tensor).all()):
            yield name


def _parameters(module: Any) -> Iterable[torch.nn.Parameter]:
    return module.parameters() if isinstance(module, torch.nn.Module) else ()
