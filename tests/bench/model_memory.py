"""How much memory stages hold beside their weights: `make bench NAME=model_memory` (two minutes).

A text encoder and a transformer of some hundred MB each, every stage in a process of its own, as in a replica. Held is
what the process holds over what it held before it loaded anything; the bound is one copy of the stage's weights.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from measure import save

NUM_PROMPTS, NUM_CHUNKS = 50, 4
MIB = 2**20


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="model-memory-")) / "wan"
    make(folder)
    figures: dict[str, Any] = {"prompts": NUM_PROMPTS, "chunks": NUM_CHUNKS}
    for stage, weights in (("encode", "text_encoder"), ("denoise", "transformer")):
        size = sum(f.stat().st_size for f in (folder / weights).glob("*.safetensors")) / MIB
        told = subprocess.run(
            [sys.executable, __file__, stage, str(folder)], stdout=subprocess.PIPE, text=True, timeout=600, check=True
        ).stdout.splitlines()[-1]  # fmt: skip
        held = json.loads(told)
        figures[stage] = {"weights_mib": size, **held, "held_over_weights": held["after_mib"] / size}
    save("model_memory", figures | {"goal": "one copy of the weights, however many tasks"})


def make(folder: Path) -> None:
    import tiny_families as tiny
    import transformers

    config = transformers.UMT5Config(vocab_size=64, d_model=1024, d_kv=64, d_ff=2048, num_layers=8, num_heads=16)

    def pipeline() -> Any:
        pipe = tiny.wan(
            "WanPipeline", scheduler=tiny.flow,
            transformer={"num_attention_heads": 8, "attention_head_dim": 128, "ffn_dim": 4096, "num_layers": 6,
                         "text_dim": 1024},
        )  # fmt: skip
        pipe.text_encoder = transformers.UMT5EncoderModel(config)
        return pipe

    tiny.save(pipeline, folder)


def stage(name: str, folder: str) -> dict[str, float]:
    import diffusers.pipelines.wan.pipeline_wan  # noqa: F401  # what both need, before memory is looked at
    import torch
    import transformers.models.umt5.modeling_umt5  # noqa: F401
    from safetensors.torch import save as pack

    from farm.task import Denoise, EncodeText, Slice
    from pipelines import denoise, encode
    from pipelines.stage import Progress

    torch.set_num_threads(2)
    before = rss_mib()
    if name == "encode":
        loaded: Any = encode.Stage(folder, ("tokenizer", "text_encoder"))
        tasks = [(EncodeText("wan", f"a red ball {i}", 512), []) for i in range(NUM_PROMPTS)]
    else:
        loaded = denoise.Stage(folder, ("transformer", "scheduler"))
        text = pack({"embeds": torch.zeros(1, 512, 1024)})
        tasks = [
            (Denoise("wan", "text", (1, 16, 5, 12, 16), 2, 1.0, 1.0, i, (Slice(0, 5, 0, None),)), [text])
            for i in range(NUM_CHUNKS)
        ]
    gc.collect()
    at_first = rss_mib() - before
    peak = at_first
    for request, inputs in tasks:
        loaded.run(request, inputs, Progress())
        peak = max(peak, rss_mib() - before)
    gc.collect()
    return {"loaded_mib": at_first, "peak_mib": peak, "after_mib": rss_mib() - before}


def rss_mib() -> float:
    return psutil.Process().memory_info().rss / MIB


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(stage(sys.argv[1], sys.argv[2])))
