"""Plans and frames of long takes on a tiny checkpoint that can do everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import Checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.pools import default_pools, numerics
from pipelines.frames import read_lossless
from pipelines.stage import as_bytes

BOARD: dict[str, Any] = {
    "size": "64x48", "fps": 8, "steps": 2, "seed": 3, "guidance": 3.0,
    "continuity": {"mode": "extend", "chunk_frames": 9, "overlap_frames": 5},
}  # fmt: skip


def plan_of(able: Checkpoint, folder: Path, *, stills: bool = False, **board: Any) -> Plan:
    text = yaml.safe_dump(BOARD | board)
    film = resolve(parse_storyboard(text.encode(), file=str(folder / "b.yaml")), able).film
    pools = default_pools(num_cpus=2, num_gpus=0)
    return make_plan(film, (able,), numerics(pools), container="mp4", stills=stills)


def frames_of(made: dict[str, Any], keys: tuple[str, ...]) -> np.ndarray:
    return np.stack([f for key in keys for f in read_lossless(as_bytes(made[key]))])


def write_picture(path: Path, *, size: tuple[int, int] = (64, 48), seed: int = 0) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.mark.usefixtures("one_thread")
def film_frames(data: bytes | Path) -> np.ndarray:
    import av

    with av.open(str(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
