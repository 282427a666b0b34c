"""The storyboards of examples/ become films that are exactly right, with the built-in model."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from farm_process import farm
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize(
    "board",
    [pytest.param(b, id=b.stem, marks=[pytest.mark.slow] if b.stem == "minute" else []) for b in EXAMPLES],
)
def test_an_example_is_rendered_exactly(board: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "frames"
    pictures = farm("render", board, "--store", store, "--out", out, "--json")
    assert pictures.code == 0, pictures.told
    film = farm("render", board, "--store", store, "--out", tmp_path / "film.mp4", "--json").answer
    assert film["tasks"]["run"] == 0
    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (film["width"], film["height"], film["fps"])
        frames = list(container.decode(stream))
    names = sorted(out.glob("*.png"))
    assert len(frames) == len(names) == film["frames"]
    for i, (frame, name) in enumerate(zip(frames, names, strict=True)):
        assert float(frame.pts * frame.time_base) == pytest.approx(i / film["fps"])
        error = np.asarray(Image.open(name), np.float64) - frame.to_ndarray(format="rgb24")
        assert 10 * np.log10(255**2 / (error**2).mean()) >= 35, name.name
