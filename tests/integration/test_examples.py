"""The storyboards of examples/ become films that are exactly right, with the built-in model."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from farm_process import farm
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


FEW = ("hop", "drive")  # of demo: a prompt that changes within a take, and a transition


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("picture", ()), pytest.param("demo", FEW, id="a part of demo"),
        pytest.param("demo", (), marks=pytest.mark.slow), pytest.param("minute", (), marks=pytest.mark.endurance),
    ],
)  # fmt: skip
def test_an_example_is_rendered_exactly(name: str, only: tuple[str, ...], tmp_path: Path) -> None:
    store, out, (board,) = tmp_path / "store", tmp_path / "frames", [b for b in EXAMPLES if b.stem == name]
    shots = [word for shot in only for word in ("--only", shot)]
    pictures = farm("render", board, "--store", store, "--out", out, "--json", *shots)
    assert pictures.code == 0, pictures.told
    film = farm("render", board, "--store", store, "--out", tmp_path / "film.mp4", "--json", *shots).answer
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


def test_every_example_is_rendered_by_a_test() -> None:
    assert {board.stem for board in EXAMPLES} == {"demo", "minute", "picture"}
