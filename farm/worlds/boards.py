"""What is rendered in a world, and by which pools: drawn by chance."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.pools.pools import Bounds, Pool


@cache
def builtin() -> Checkpoint:
    return find_checkpoint("builtin", beside=Path())


BOARD = """\
title: World {seed} {number}
size: 64x48
fps: 8
steps: {steps}
seed: {seed}
shots:
"""


def make_board(rng: random.Random, number: int) -> str:
    """A storyboard of some shots, some of them long."""
    text = BOARD.format(seed=rng.randrange(10**9), number=number, steps=rng.randint(1, 50))
    for i in range(rng.randint(2, 7)):
        text += f"  - {{id: s{i}, prompt: a {rng.choice(['red', 'blue'])} ball rolls, frames: {rng.randint(5, 75)}"
        if i and rng.random() < 0.3:
            text += f", continue_from: s{rng.randrange(i)}"
        elif rng.random() < 0.3:
            text += ", continuity: {mode: blend}"
        elif rng.random() < 0.3:
            text += ", continuity: {max_seam: 1.2, rerolls: 1}"
        text += "}\n"
    return text


def draw_pools(rng: random.Random) -> dict[str, Pool]:
    def bounds() -> Bounds:
        most = rng.randint(1, 4)
        return Bounds(min=rng.randint(0, most), max=most)

    pools = {
        "encode": Pool(stages=["encode"], replicas=bounds()),
        "denoise": Pool(stages=["denoise"], replicas=bounds(), memory_gib=8),
        "media": Pool(stages=["decode", "interpolate", "assemble"], replicas=bounds(), memory_gib=8),
    }
    if rng.random() < 0.3:
        pools["large"] = Pool(stages=["denoise"], replicas=bounds(), memory_gib=16)
    return pools
