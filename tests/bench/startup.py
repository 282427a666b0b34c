"""How long a user waits: from `farm render` to the first denoise step and to the film: `make bench NAME=startup`.

Weights of the built-in model's sizes, random, so that it runs without the model; a fresh store each time; local Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import WanPipeline
from measure import save, spread

from pipelines.builtin import architecture

RUNS = 5


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="startup-"))
    torch.manual_seed(0)
    WanPipeline(
        tokenizer=architecture.tokenizer(), text_encoder=architecture.text_encoder(), vae=architecture.autoencoder(),
        scheduler=architecture.scheduler(), transformer=architecture.transformer(), expand_timesteps=True,
    ).save_pretrained(folder / "model", safe_serialization=True)  # fmt: skip
    board = folder / "film.yaml"
    board.write_text(
        f"model: {folder / 'model'}\nsize: 96x64\nfps: 8\nsteps: 20\nguidance: 4.0\n"
        "shots: [{id: a, prompt: a red ball, frames: 17}]\n"
    )
    runs = [measure(board, i) for i in range(RUNS + 1)][1:]
    save(
        "startup",
        {
            "goal": "first step within 12 s",
            "first_step_s": spread([r[0] for r in runs]),
            "whole_render_s": spread([r[1] for r in runs]),
        },
    )


def measure(board: Path, number: int) -> tuple[float, float]:
    command = [
        sys.executable,
        "-m",
        "longtake",
        "render",
        str(board),
        "--store",
        str(board.parent / f"s{number}"),
        "--json",
    ]
    started = time.time()
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["first_step_at"] - started, time.time() - started


if __name__ == "__main__":
    main()
