"""What a GPU is measured with: `measures.py SECTION`, one JSON object a line, the most telling first.

Weights are random, of published shapes; beside each figure is that of stock diffusers, or a bound, from the same run.
Without a GPU every section runs at a tiny size, so that nothing fails of a typo where a GPU is at hand at last. A line
that is not possible says why. Whoever starts a section may end it at any time: what was printed counts.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
SMALL, LARGE = ("Wan2.1 1.3B", "Wan2.2 A14B (one expert)") if HAS_GPU else ("tiny", "tiny")
Line = dict[str, Any]


def main(section: str) -> None:
    torch.set_num_threads(min(8, torch.get_num_threads()))
    for what, work in SECTIONS[section]():
        try:
            for line in work():
                tell(section, **what, **line)
        except Exception as e:  # noqa: BLE001  # told on its line: another option may be possible
            tell(section, **what, not_possible=f"{type(e).__name__}: {e}"[:300])
        gc.collect()
        if HAS_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def tell(section: str, **what: Any) -> None:
    peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if HAS_GPU else {}
    print(json.dumps({"section": section, **what, **peak}), flush=True)


# -- one step of the denoise loop, with guidance, against what the stock pipeline calls


def forward() -> Iterator[tuple[Line, Callable[[], Iterator[Line]]]]:
    from forward_pass import OPTIONS

    more: dict[str, dict[str, Any]] = {"fp8": {"quantize": "fp8"}, "int8": {"quantize": "int8"}}
    more |= {"taylorseer": {"cache": {"kind": "taylorseer", "interval": 5}}, "flash": {"attention": "flash"}}
    plan = [(SMALL, "480p", name) for name in (*OPTIONS, *more)]
    plan += [
        (LARGE, "480p", name) for name in ("plain", "native flash", "cudnn", "compile", "fp8", "first block cache")
    ]
    plan += [(SMALL, "720p", "plain"), (SMALL, "720p", "cudnn"), (LARGE, "720p", "cudnn")]
    for size, shape, option in plan:
        what = {"model": size, "shape": shape, "option": option}
        yield what, partial(_step, size, shape, option, (OPTIONS | more)[option])


def _step(size: str, shape: str, option: str, means: Line) -> Iterator[Line]:
    from forward_pass import NOTHING, SHAPES, SIZES, TINY, build, matrix_rate, measure

    from pipelines.load import speed_up

    model = build(SIZES[size] if HAS_GPU else TINY["tiny"], DEVICE, DTYPE)
    if numbers := means.get("quantize"):
        _quantize(model, numbers)
    speed_up(model, **NOTHING | {k: v for k, v in means.items() if k != "quantize"})
    peak = matrix_rate(DEVICE, DTYPE)
    latents = SHAPES[shape] if HAS_GPU else (1, 16, 3, 12, 16)
    repeats = 1 if size == LARGE and HAS_GPU else 3
    name = "cache" if "cache" in means else option
    yield {"matrix_tflops": peak / 1e12, **measure(model, latents, peak, name, repeats=repeats)}


def _quantize(model: Any, numbers: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig() if numbers == "int8" else Float8WeightOnlyConfig())


# -- a gang of one over NCCL, against the same step without a gang


def gang() -> Iterator[tuple[Line, Callable[[], Iterator[Line]]]]:
    for is_compiled in (False, True):
        yield {"model": SMALL, "ranks": 1, "compile": is_compiled}, partial(_gang_step, is_compiled)


def _gang_step(is_compiled: bool) -> Iterator[Line]:
    from forward_pass import SHAPES, SIZES, TINY
    from gang_scaling import step_s
    from ranks import ranks_of

    from farm.pools.parallel import Degrees

    how = SIZES[SMALL] if HAS_GPU else TINY["tiny"] | {"num_attention_heads": 4}
    shape = SHAPES["480p"] if HAS_GPU else (1, 16, 3, 12, 16)
    with ranks_of(1, device=DEVICE) as one:
        (seconds,) = one(step_s, how, shape, Degrees(), DEVICE, is_compiled)
    yield {"s_per_step": seconds, "backend": "nccl" if HAS_GPU else "gloo"}


# -- decoding a chunk: whole by the stock autoencoder, and as a stream


def decode() -> Iterator[tuple[Line, Callable[[], Iterator[Line]]]]:
    for means in ("stream", "whole", "tiles"):
        for dtype in (torch.float32, torch.bfloat16):
            yield {"means": means, "dtype": str(dtype)}, partial(_decode, means, dtype)


@torch.no_grad()
def _decode(means: str, dtype: torch.dtype) -> Iterator[Line]:
    from diffusers import AutoencoderKLWan

    from pipelines.families.wan import DecodeStream

    small = {} if HAS_GPU else {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    with torch.device(DEVICE):
        vae = AutoencoderKLWan(**small).to(dtype).eval()
    latents = torch.randn((1, 16, 21, 60, 104) if HAS_GPU else (1, 16, 3, 8, 12), device=DEVICE, dtype=dtype)
    if means == "tiles":
        vae.enable_tiling()
    for run in ("cold", "warm"):
        if HAS_GPU:
            torch.cuda.synchronize()
        started = time.perf_counter()
        if means == "stream":
            stream = DecodeStream(vae)
            frames = sum(stream.decode_next(latents[:, :, i : i + 1]).shape[1] for i in range(latents.shape[2]))
        else:
            frames = vae.decode(latents).sample.shape[2]
        if HAS_GPU:
            torch.cuda.synchronize()
        yield {"run": run, "frames": frames, "s": time.perf_counter() - started}


# -- memory of a transformer's weights and of one step, by where the weights are


def memory() -> Iterator[tuple[Line, Callable[[], Iterator[Line]]]]:
    for offload in ("none", "group", "sequential"):
        yield {"model": LARGE, "offload": offload}, partial(_memory, offload)


@torch.no_grad()
def _memory(offload: str) -> Iterator[Line]:
    from forward_pass import SHAPES, SIZES, TINY, build

    model = build(SIZES[LARGE] if HAS_GPU else TINY["tiny"], DEVICE if offload == "none" else "cpu", DTYPE)
    if offload != "none":
        from diffusers.hooks import apply_group_offloading

        how = {"offload_type": "leaf_level"}
        if offload == "group":
            how = {"offload_type": "block_level", "num_blocks_per_group": 1}
        on, off = torch.device(DEVICE), torch.device("cpu")
        apply_group_offloading(model, onload_device=on, offload_device=off, **how)
    yield {"weights_gib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30}
    shape = SHAPES["480p"] if HAS_GPU else (1, 16, 3, 12, 16)
    text = torch.randn(1, 512, model.config.text_dim, device=DEVICE, dtype=DTYPE)
    latents = torch.randn(shape, device=DEVICE, dtype=DTYPE)
    started = time.perf_counter()
    model(hidden_states=latents, timestep=torch.tensor([700.0], device=DEVICE), encoder_hidden_states=text)
    if HAS_GPU:
        torch.cuda.synchronize()
    yield {"first_forward_s": time.perf_counter() - started}


SECTIONS: dict[str, Callable[[], Iterator[tuple[Line, Callable[[], Iterator[Line]]]]]] = {
    "forward": forward, "gang": gang, "decode": decode, "memory": memory,
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1])
