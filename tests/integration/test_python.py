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
