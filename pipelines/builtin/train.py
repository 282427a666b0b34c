"""Train the built-in model: `python -m pipelines.builtin.train autoencoder`, then `... transformer`.

Each phase is a fixed number of steps whose data, noise and learning rate depend only on (seed, step), so a run that was
stopped (`--slice-minutes`) goes on as if it had not been. State is kept in safetensors beside the output folder.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning waits make two threads slower than one

import torch

from pipelines.builtin.optimizer import Options
from pipelines.builtin.train_autoencoder import train_autoencoder
from pipelines.builtin.train_transformer import train_transformer

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=["autoencoder", "transformer"])
    parser.add_argument("--out", type=Path, default=HERE / "weights")
    parser.add_argument("--work", type=Path, default=Path(".longtake-training"), help="folder of the training state")
    parser.add_argument("--steps", type=int, help="steps of the whole phase (default: 12000 and 16000)")
    parser.add_argument("--slice-minutes", type=float, default=1e9, help="stop after this long; run again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--begin-with", type=Path, help="a model folder to go on from, instead of random weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    train = train_autoencoder if args.phase == "autoencoder" else train_transformer
    until = time.monotonic() + 60 * args.slice_minutes
    train(args.out, args.work, Options(args.steps, args.seed, args.threads, args.device, args.begin_with, until))


if __name__ == "__main__":
    main()
