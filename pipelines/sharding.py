"""Weights that do not fit: DeepSpeed ZeRO-3 spreads a module's parameters over the ranks of a gang.

Each parameter is gathered when its layer computes and let go of after it. No rank ever holds the whole model, in host
memory neither: the module is made of shards from the start, and each rank copies its own slice of every tensor out of
the checkpoint's files. DeepSpeed is imported here alone, by gangs that ask for it.

A rank's parameters take at most 1/n of the whole, plus what is gathered for one layer while it computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from farm.errors import InputError

M_MMAP_THRESHOLD = -3  # of malloc.h
ZERO_3 = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,  # small tensors are sharded too
        "stage3_max_live_parameters": 0,  # gathered ones go as soon as their layer has computed
        "stage3_prefetch_bucket_size": 0,
        "memory_efficient_linear": False,  # it replaces F.linear by other arithmetic
    },
}


def load_sharded(cls: Any, path: str, *, dtype: torch.dtype) -> Any:
    """One component of diffusers or transformers, its parameters spread over all ranks; all of them must call it.

    In float32 results agree with the whole module's within 1e-5. In other dtypes all parameters have that dtype, also
    those that diffusers keeps in float32 otherwise.

    Raises:
        InputError: the checkpoint lacks a parameter, or one has another shape.
    """
    import deepspeed
    from accelerate import init_empty_weights

    _return_freed_memory()
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    told = _configuration(dtype)
    with deepspeed.zero.Init(config_dict_or_path=told):  # its argument `dtype` is not heeded on the CPU
        module = _made(cls, path, dtype)
    with init_empty_weights(include_buffers=False):
        exact = _made(cls, path, dtype)
    for name, buffer in exact.named_buffers():  # zero.Init has converted those made inside it: wrong by 5e-2 in bf16
        owner, _, own = name.rpartition(".")
        module.get_submodule(owner)._buffers[own] = buffer
    lacking = _fill(module, Path(path))
    if lacking:
        raise InputError(f"{path} must hold all weights of {cls.__name__}: {', '.join(lacking[:3])} are missing")
    module.eval().requires_grad_(False)
    engine = deepspeed.initialize(model=module, config=told)[0]
    module.__dict__["_engine"] = engine  # its hooks gather parameters; not a submodule
    return module


def _return_freed_memory() -> None:
    """Have glibc give large blocks back as soon as they are freed, as here whole tensors are, one after another.

    Otherwise it keeps them: measured, with two ranks a peak of 1.4 times the whole model instead of 0.6.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def _configuration(dtype: torch.dtype) -> dict[str, Any]:
    kinds = {torch.bfloat16: {"bf16": {"enabled": True}}, torch.float16: {"fp16": {"enabled": True}}}
    return ZERO_3 | kinds.get(dtype, {})


def _made(cls: Any, path: str, dtype: torch.dtype) -> Any:
    """A module with the checkpoint's configuration; its weights are drawn, or absent."""
    with _default_dtype(dtype):
        if hasattr(cls, "load_config"):  # diffusers
            return cls.from_config(cls.load_config(path))
        from transformers.initialization import no_init_weights

        with no_init_weights():  # it would draw weights that are not here
            made = cls(cls.config_class.from_pretrained(path))
        made.tie_weights()
        return made


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As `from_pretrained` does, so that buffers are made in the same way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _fill(module: Any, folder: Path) -> list[str]:
    """Copy this rank's slice of every tensor of the checkpoint. Returns names of parameters that no file holds."""
    from safetensors import safe_open

    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers())
    left, rank = {id(p): name for name, p in parameters.items()}, dist.get_rank()
    for file in _files(folder):
        with safe_open(str(file), "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                if name in buffers:
                    buffers[name].copy_(tensors.get_tensor(name))
                ours = _our_name(name, parameters)
                if ours is None:
                    continue
                parameter = parameters[ours]
                whole = tensors.get_tensor(name)
                if tuple(whole.shape) != tuple(parameter.ds_shape):
                    raise InputError(f"{file}: {name} must be of shape {tuple(parameter.ds_shape)}, got {whole.shape}")
                own = parameter.ds_tensor.data
                part = whole.flatten()[rank * own.numel() : (rank + 1) * own.numel()]
                own[: part.numel()].copy_(part)
                left.pop(id(parameter), None)
    return sorted(left.values())


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint: those that its index names, where there is one."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def _our_name(name: str, parameters: Mapping[str, Any]) -> str | None:
    """The module's name of a checkpoint's tensor: older ones have a prefix more, or less (CLIP's `text_model.`)."""
    if name in parameters:
        return name
    found = [ours for ours in parameters if name.endswith(f".{ours}") or ours.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None
