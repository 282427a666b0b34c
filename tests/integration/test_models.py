"""Films of several models through the command line and Ray."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
import yaml
from farm_process import farm
from PIL import Image


@pytest.mark.slow
def test_a_film_of_four_models(tmp_path: Path) -> None:
    """Text that another model goes on from, a take between two pictures with a reference, a picture that moves."""
    models = {
        "text": partial(tiny.cogvideox, "CogVideoXPipeline"), "vace": partial(tiny.wan, "WanVACEPipeline"),
        "image": partial(tiny.cogvideox, "CogVideoXImageToVideoPipeline"), "svd": tiny.svd,
    }  # fmt: skip
    for name, made in models.items():
        tiny.save(made, tmp_path / name)
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    between = {"image": "a.png", "last_image": "b.png", "references": ["c.png"]}
    board = {
        "title": "Four", "model": "text", "size": "64x48", "steps": 2, "continuity": {"chunk_frames": 9},
        "shots": [
            {"id": "long", "prompt": "a red ball", "frames": 21, "continuity": {"model": "image"}},
            {"id": "ends", "model": f"file://{tmp_path}/vace", "prompt": "a blue cube", "frames": 9, **between},
            {"id": "still", "model": "svd", "image": "a.png", "frames": 12},
        ],
    }  # fmt: skip
    path = tmp_path / "film.yaml"
    path.write_text(yaml.safe_dump(board))
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    argv = ("render", path, "--store", tmp_path / "store", "--out", tmp_path / "frames", "--json")
    done = farm(*argv, timeout_s=240, **cache)
    assert done.code == 0, done.told
    assert [(s["id"], s["frames"], s["chunks"]) for s in done.answer["shots"]] == [
        ("long", 21, 3), ("ends", 9, 1), ("still", 12, 2)
    ]  # fmt: skip
    assert len(list((tmp_path / "frames").glob("*.png"))) == 42
    board["shots"][2]["seed"] = 5
    path.write_text(yaml.safe_dump(board))
    again = farm(*argv, timeout_s=240, **cache)
    assert again.code == 0, again.told
    run = set(again.answer["stage_s"])
    assert run == {"encode", "denoise", "decode", "assemble"}
    assert again.answer["tasks"]["run"] < done.answer["tasks"]["run"] / 2
