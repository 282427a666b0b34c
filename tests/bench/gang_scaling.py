"""How a gang scales: seconds a step on several ranks against one, in the same run: `make bench NAME=gang_scaling`.

With GPUs: transformers of published sizes with random weights at 480p and 720p over NCCL, all degrees that the model
allows on 1, 2, 4 and 8 ranks, and at one rank ZeRO-3 and compile beside the plain model. Beside each figure stands
what farm/pools/parallel.py estimates. Goals, from public figures: efficiency of at least 0.95 with guidance on 2
GPUs, 0.90 on 4 and 0.85 on 8 at 720p over NVLink. Without GPUs a tiny model on gloo only shows that the script works:
2 cores cannot be faster than one process by splitting what they share.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from forward_pass import GUIDANCE, SHAPES, SIZES, TINY, build, device_name
from measure import save
from ranks import Ranks, ranks_of, sharing

from farm.models.cards import stock_cards
from farm.pools.parallel import Degrees, Hardware, candidates, estimate, work_of

REPEATS = 5


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    four_heads = {"tiny": TINY["tiny"] | {"num_attention_heads": 4}}
    sizes, shapes = (SIZES, SHAPES) if device == "cuda" else (four_heads, {"tiny": (1, 16, 3, 12, 16)})
    counts = [n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if device == "cuda" else 4)]
    lines: list[dict[str, Any]] = []
    for ranks in counts:
        with ranks_of(ranks, device=device) as gang:
            for size, how in sizes.items():
                for name, shape in shapes.items():
                    lines += measure(gang, ranks, size, how, name, shape, device)
    alone = {(x["model"], x["shape"]): x["s_per_step"] for x in lines if x["ranks"] == 1 and x["how"] == "plain"}
    for line in lines:
        line["efficiency"] = alone[line["model"], line["shape"]] / line["s_per_step"] / line["ranks"]
        print(line, flush=True)
    save("gang_scaling", {"device": device_name(device), "lines": lines})


def measure(
    gang: Ranks, ranks: int, size: str, how: dict[str, int], name: str, shape: tuple[int, ...], device: str
) -> list[dict[str, Any]]:
    heads, dim = how["num_attention_heads"], 128 if device == "cuda" else 24
    card = replace(
        stock_cards()["WanPipeline"], num_heads=heads, width=heads * dim, num_blocks=how["num_layers"],
        block_weights=(heads * dim) ** 2 * 8 + 2 * heads * dim * how["ffn_dim"],
    )  # fmt: skip
    work = work_of(card, shape, num_latents=shape[2], is_guided=True)
    hardware = Hardware(8, _accelerator(device))
    ways = [(d, "plain") for d in candidates(ranks, work)]
    ways += [(Degrees(), "compile")] if ranks == 1 else []
    lines = []
    for degrees, means in ways:
        seconds = gang(step_s, how, shape, degrees, device, means == "compile")
        lines.append({
            "model": size, "shape": name, "ranks": ranks, "degrees": str(degrees), "how": means, "tokens": work.tokens,
            "s_per_step": max(seconds), "estimated_s": estimate(degrees, work, hardware).step_s,
        })  # fmt: skip
    return lines


@torch.no_grad()
def step_s(
    gang: Any, how: dict[str, int], shape: tuple[int, ...], degrees: Degrees, device: str, is_compiled: bool
) -> float:
    """The median of one step with guidance on this rank, in seconds; all ranks have the same random weights."""
    from farm.task import Denoise, Slice
    from pipelines.family import Given, family_of
    from pipelines.sequence import split_all

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = build(how, device, dtype)
    if is_compiled:
        model.compile_repeated_blocks(fullgraph=True)
    gang.sharing = sharing(degrees, gang.size)
    split = gang.split(degrees)
    splits = split_all([model], split)
    texts = [{"embeds": torch.randn(1, 512, model.config.text_dim, device=device, dtype=dtype)} for _ in range(2)]
    given = Given(texts[0], texts[1], split=split if degrees.guidance > 1 else None)
    request = Denoise("wan", "text", shape, 1, GUIDANCE, GUIDANCE, 0, (Slice(0, shape[2], 0, 1),))
    predict = family_of("wan").make_predict({"transformer": model}, request, given)
    latents, t = torch.randn(shape, device=device), torch.tensor(700.0, device=device)
    taken = []
    for _ in range(REPEATS + 2):  # two to warm up
        gang.agree(False)  # all begin together
        started = time.perf_counter()
        predict(latents, t)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    for one in splits:
        one.remove()
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return statistics.median(taken[2:])


def _accelerator(device: str) -> str | None:
    name = device_name(device)
    return next((kind for kind in ("H100", "H200", "A100", "L40S", "L4", "B200") if kind in name), None)


if __name__ == "__main__":
    main()
