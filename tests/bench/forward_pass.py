"""The transformer's forward passes against stock diffusers' own: `make bench NAME=forward_pass`.

Transformers of published sizes with random weights, at 480p and 720p, 81 frames; each option of a pool on its own line.
Compared in the same run: the farm's `predict` with what the stock pipeline calls in its loop, on the same weights; and
the rate of matrix arithmetic with what the same device reaches in one large product. Without a GPU a tiny model stands
in, which only shows that the script works.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import save

from farm.task import Denoise, Slice
from pipelines.family import Given, family_of
from pipelines.load import speed_up

SIZES: dict[str, dict[str, int]] = {  # heads of 128, as their config.json says
    "Wan2.1 1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "Wan2.2 A14B (one expert)": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
TINY = {"tiny": {"num_attention_heads": 2, "ffn_dim": 64, "num_layers": 2}}
SHAPES = {"480p": (1, 16, 21, 60, 104), "720p": (1, 16, 21, 90, 160)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "native flash": {"attention": "_native_flash"}, "cudnn": {"attention": "_native_cudnn"},
    "compile": {"compile": True}, "first block cache": {"cache": {"kind": "first_block", "threshold": 0.05}},
}  # fmt: skip
NOTHING = {"attention": "native", "compile": False, "cache": {}}
REPEATS, GUIDANCE = 3, 5.0


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.set_num_threads(2)
    sizes, shapes = (SIZES, SHAPES) if device == "cuda" else (TINY, {"tiny": (1, 16, 3, 12, 16)})
    peak = matrix_rate(device, dtype)
    lines = []
    for size, how in sizes.items():
        for option, means in OPTIONS.items():
            model = build(how, device, dtype)
            try:
                speed_up(model, **NOTHING | means)
            except Exception as e:  # noqa: BLE001  # told on its line
                lines.append({"model": size, "option": option, "not_possible": str(e)[:200]})
                continue
            for name, shape in shapes.items():
                try:
                    lines.append(
                        {"model": size, "shape": name, "option": option, **measure(model, shape, peak, option)}
                    )
                except Exception as e:  # noqa: BLE001
                    lines.append({"model": size, "shape": name, "option": option, "not_possible": str(e)[:200]})
                print(lines[-1], flush=True)
            del model
            if device == "cuda":
                torch.cuda.empty_cache()
    save(
        "forward_pass",
        {"device": device_name(device), "dtype": str(dtype), "matrix_tflops": peak / 1e12, "lines": lines},
    )


def build(how: dict[str, int], device: str, dtype: torch.dtype) -> Any:
    from diffusers import WanTransformer3DModel

    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = WanTransformer3DModel(
                attention_head_dim=128 if device == "cuda" else 24, cross_attn_norm=True,
                text_dim=4096 if device == "cuda" else 32, **how,
            )  # fmt: skip
        finally:
            torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def measure(model: Any, shape: tuple[int, ...], peak: float, option: str, *, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of one step with guidance, in alternating turns of the farm and of stock diffusers' calls."""
    device, dtype = next(model.parameters()).device, model.dtype
    texts = [{"embeds": torch.randn(1, 512, model.config.text_dim, device=device, dtype=dtype)} for _ in range(2)]
    request = Denoise("wan", "text", shape, 1, GUIDANCE, GUIDANCE, 0, (Slice(0, shape[2], 0, 1),))
    ours = family_of("wan").make_predict({"transformer": model}, request, Given(texts[0], texts[1]))
    latents, t = torch.randn(shape, device=device), torch.tensor(700.0, device=device)

    def stock() -> torch.Tensor:
        """WanPipeline's loop around `noise_pred`."""
        made = []
        for name, text in zip(("cond", "uncond"), texts, strict=True):
            with model.cache_context(name):
                made.append(model(
                    hidden_states=latents.to(dtype), timestep=t.expand(1), encoder_hidden_states=text["embeds"],
                    return_dict=False,
                )[0])  # fmt: skip
        return made[1] + GUIDANCE * (made[0] - made[1])

    def farm() -> torch.Tensor:
        return ours(latents, t)

    is_cached = "cache" in option
    if is_cached:  # the first pass computes all; what follows shows what the cache leaves
        model._reset_stateful_cache()
    a, b = timed(farm, device)[1], timed(stock, device)[1]
    seconds: dict[str, list[float]] = {"farm": [], "stock": []}
    for _ in range(repeats):
        for name, work in (("farm", farm), ("stock", stock)):
            seconds[name].append(timed(work, device)[0])
    _, patch_h, patch_w = model.config.patch_size
    tokens = shape[2] * (shape[3] // patch_h) * (shape[4] // patch_w)
    median = statistics.median(seconds["farm"])
    told = {
        "s_per_step": median, "stock_s_per_step": statistics.median(seconds["stock"]), "tokens": tokens,
        "tokens_per_s": 2 * tokens / median, "equal": bool(torch.equal(a, b)),
    }  # fmt: skip
    if is_cached:  # both share one cache here
        told.pop("equal")
        return told
    return told | {"share_of_matrix_rate": 2 * flops(model, tokens) / median / peak}


def flops(model: Any, tokens: int) -> float:
    """Of one forward pass: two for each weight and token, and the attention of every token to every token."""
    weights = sum(p.numel() for p in model.parameters())
    width = model.config.num_attention_heads * model.config.attention_head_dim
    return 2.0 * weights * tokens + 4.0 * tokens**2 * width * model.config.num_layers


def timed(work: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    made = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, made


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large product, the best of ten."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2.0 * side**3 / min(timed(lambda: a @ b, a.device)[0] for _ in range(10))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


if __name__ == "__main__":
    main()
