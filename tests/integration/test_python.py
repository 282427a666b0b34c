"""`longtake.render` as docs/python.md shows it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av

DOC = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_first_example_renders_a_film(tmp_path: Path) -> None:
    example = DOC.read_text().split("```python\n")[1].partition("\n```")[0]
    again = "film = longtake.render('film.yaml', 'again.mp4')\nprint(film.tasks, film._repr_html_()[:30])"
    (tmp_path / "film.yaml").write_text("shots: [{id: ball, prompt: a red ball rolls over grass at day, seconds: 2}]\n")
    done = subprocess.run(
        [sys.executable, "-c", f"{example}\n{again}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path / 'film.mp4'} 16 2.0" or first == "film.mp4 16 2.0"
    assert "'run': 0" in second and "<video controls loop" in second  # the same film: nothing runs again
    with av.open(str(tmp_path / "again.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) == 16


def test_the_ray_of_a_notebook_is_neither_used_unasked_nor_ended(tmp_path: Path) -> None:
    code = """
import os, ray, longtake
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
board = {"steps": 2, "shots": [{"id": "a", "prompt": "a red ball", "frames": 5}]}
try:
    longtake.render(board, "a.mp4")
except longtake.InputError as e:
    print(str(e).partition(";")[0], ray.is_initialized())
print(longtake.render(board, "a.mp4", address="auto", pools="pools.yaml").frames, ray.is_initialized())
"""
    (tmp_path / "pools.yaml").write_text("pools: {all: {stages: [encode, denoise, decode, assemble]}}")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    refused, rendered = done.stdout.splitlines()[-2:]
    assert refused == "this process must not be connected to Ray when a local one is to be started True"
    assert rendered == "5 True"
