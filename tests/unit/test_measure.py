"""Benchmarks say what has changed since the figures that are committed."""

from __future__ import annotations

import json
from pathlib import Path

import measure
import pytest


def test_a_second_run_is_compared_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.save("plan", {"goals": "none", "shots": {"wall_s": measure.spread([2.0, 4.0, 3.0])}, "rows": [{"n": 5}]})
    assert "compared" not in capsys.readouterr().out
    measure.save("plan", {"goals": "none", "shots": {"wall_s": measure.spread([6.0])}, "rows": [{"n": 5}], "new": 1})
    told = capsys.readouterr().out.partition("compared with")[2].splitlines()
    assert "loop of 10^6 steps" in told[0]
    assert [line.split() for line in told[1:]] == [
        ["shots.wall_s", "3", "->", "6", "+100", "%"], ["rows.0.n", "5", "->", "5", "+0", "%"],
    ]  # fmt: skip
    assert json.loads((tmp_path / "plan.json").read_text())["figures"]["new"] == 1
