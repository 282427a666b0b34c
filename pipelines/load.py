"""Load single components of a diffusers folder, so that a process holds only what its stage needs.

Invariants: only safetensors are opened; weights are copied out of the file, because the alignment of memory-mapped
weights changes bits (measured: first in `time_embedder.linear_1` of Wan on CPU).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from farm.errors import InputError
from farm.pools.options import EXTRAS, PACKAGES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "image_processor", "feature_extractor", "guider")
# Where diffusers keeps the classes we use: importing them from there spares its top level (measured: 2 s less).
HOMES = {
    "AutoencoderKLWan": "diffusers.models.autoencoders.autoencoder_kl_wan",
    "WanTransformer3DModel": "diffusers.models.transformers.transformer_wan",
}


def load_component(
    folder: str, component: str, *, dtype: str, device: str, offload: str = "none", quantize: str = "",
    is_sharded: bool = False,
) -> Any:  # fmt: skip
    """Load one component that model_index.json names.

    Args:
        folder: a checkpoint in diffusers format.
        component: "vae", "transformer", "tokenizer", "scheduler" ...
        dtype: of its weights; ignored by components without weights.
        offload: keep the weights on the host: `sequential` brings each layer's to the GPU when it is needed, `group`
            each block's while the one before computes, `model` the whole component's (see `resident`).
        quantize: hold its weights as int8 or fp8 (torchao) or nf4 (bitsandbytes).
        is_sharded: spread its weights over the ranks of the gang (sharding.py).
    Raises:
        InputError: weights are missing, or a package that the quantisation needs.
    """
    index = json.loads((Path(folder) / "model_index.json").read_text())
    library, name = index[component]
    cls = getattr(importlib.import_module(HOMES.get(name, library)), name)
    path = str(Path(folder) / component)
    if is_sharded and not component.startswith(WITHOUT_WEIGHTS):
        from pipelines.sharding import load_sharded

        return load_sharded(cls, path, dtype=DTYPES[dtype]).to(device)
    with telling_what_is_damaged(f"{component} of {folder}"):
        if component.startswith(WITHOUT_WEIGHTS):
            return cls.from_pretrained(path)
        how = {"quantization_config": _quantization(library, quantize, DTYPES[dtype])} if quantize else {}
        module = _read_weights(cls, path, dtype=DTYPES[dtype], **how)
    module.eval().requires_grad_(False)
    if not quantize:
        own_memory(module)
    if device == "cpu" or offload == "model":
        return module
    if offload in ("group", "sequential"):
        from diffusers.hooks import apply_group_offloading

        how = (
            {"offload_type": "block_level", "num_blocks_per_group": 1, "use_stream": True} if offload == "group"
            else {"offload_type": "leaf_level"}
        )  # fmt: skip
        apply_group_offloading(module, onload_device=torch.device(device), offload_device=torch.device("cpu"), **how)
        return module
    return module.to(device)


def _read_weights(cls: Any, path: str, **how: Any) -> Any:
    module, told = cls.from_pretrained(path, use_safetensors=True, output_loading_info=True, **how)
    lacking = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in told.get(kind, ()))
    if lacking:  # they would be drawn at random, under a key that says nothing of it
        raise InputError(
            f"{path} must hold all weights of {cls.__name__}: {', '.join(lacking[:3])} are missing or of other shapes"
        )
    return module


@contextmanager
def telling_what_is_damaged(what: str) -> Iterator[None]:
    """Whatever a library says of files that it cannot read is a fault of those files, but for a lack of memory.

    Raises:
        InputError: in its words.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as e:
        is_systems_own = isinstance(e, OSError) and e.errno is not None  # a disk that fails, too many open files
        if is_systems_own or any(word in str(e).lower() for word in ("memory", "cuda", "nccl", "device")):
            raise
        raise InputError(f"{what} must be what diffusers can load: {type(e).__name__}: {e}; fetch it again") from e


def _quantization(library: str, numbers: str, dtype: torch.dtype) -> Any:
    """The configuration for `from_pretrained` of diffusers or transformers."""
    package = PACKAGES[numbers]
    if importlib.util.find_spec(package) is None:
        install = f"pip install {EXTRAS.get(package, package)!r} where replicas run"
        raise InputError(f"quantize: {numbers} needs the package {package}; {install}")
    source = importlib.import_module(library)
    if numbers == "nf4":
        kind = source.BitsAndBytesConfig
        return kind(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return source.TorchAoConfig(Int8WeightOnlyConfig() if numbers == "int8" else Float8WeightOnlyConfig())


def speed_up(module: Any, *, attention: str, compile: bool, cache: Mapping[str, Any]) -> None:
    """Apply the means that a pool asks of a transformer.

    Raises:
        InputError: the model or this machine lacks one.
    """
    try:
        if attention:
            module.set_attention_backend(attention)
        if cache:
            module.enable_cache(_cache(cache))
        if compile:
            module.compile_repeated_blocks(fullgraph=not cache)
    except (AttributeError, ValueError, RuntimeError, ImportError) as e:
        asked = f"attention {attention or 'native'}, compile {compile}, cache {cache.get('kind', 'none')}"
        raise InputError(f"options of the pool must be possible for {type(module).__name__}, got {asked}: {e}") from e


def _cache(how: Mapping[str, Any]) -> Any:
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if how["kind"] == "first_block":
        return FirstBlockCacheConfig(threshold=how["threshold"])
    return TaylorSeerCacheConfig(cache_interval=how["interval"], use_lite_mode=True)


@contextmanager
def resident(components: Iterable[Any], *, device: str, offload: str) -> Iterator[None]:
    """Whole components on the GPU for the time of a task, where they are kept on the host otherwise (`model`)."""
    modules = [c for c in components if isinstance(c, torch.nn.Module)] if offload == "model" else []
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to("cpu")


def own_memory(module: torch.nn.Module) -> None:
    """Copy all weights out of whatever file they are mapped from."""
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data.clone()


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
