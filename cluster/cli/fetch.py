"""`farm fetch`: a model, or RIFE's weights, brought to this machine before a render asks for them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from cluster.cli.answer import Answer
from cluster.cli.options import add_json, tell
from farm.errors import RenderError
from farm.film.interpolation import rife_weights
from farm.models.checkpoint import find_checkpoint

SETUP_TIMEOUT_S = 900.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="rife, org/name[@revision] of the hub, or a URI of a bucket")
    add_json(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    path = fetch_rife() if args.model == "rife" else Path(find_checkpoint(args.model, beside=Path.cwd()).folder)
    return tell(args, {"model": args.model, "path": str(path)}, [str(path)])


def fetch_rife() -> Path:
    """RIFE's weights, converted by the set-up in a process of its own, which alone imports torch.

    Raises:
        RenderError: they cannot be had.
    """
    setup = [sys.executable, "-m", "pipelines.rife_setup"]
    try:
        done = subprocess.run(setup, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RenderError(f"RIFE's weights did not come within {SETUP_TIMEOUT_S:g} s") from None
    if not rife_weights().is_file():
        told = done.stderr.strip().splitlines()
        raise RenderError(told[-1] if told else f"RIFE's weights were not written to {rife_weights()}")
    return rife_weights()
