"""A local Ray that does not come up is started once more, and then told in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.main import main
from cluster.ray import Connection
from farm.pools.pools import Pool

TIMED_OUT = Exception("The current node timed out during startup. This could happen because ...\nmore")


def starts(monkeypatch: pytest.MonkeyPatch, *outcomes: Exception | None) -> list[Exception | None]:
    left = list(outcomes)

    def start(self: Connection, pools: Mapping[str, Pool], quiet: dict[str, Any]) -> None:
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(Connection, "_start", start)
    return left


def test_a_ray_that_does_not_come_up_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    left = starts(monkeypatch, TIMED_OUT, None)
    Connection(None, {})
    assert not left


def test_one_that_never_comes_up_ends_with_3_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = starts(monkeypatch, TIMED_OUT, TIMED_OUT)
    board = tmp_path / "film.yaml"
    board.write_text("shots: [{id: a, prompt: a red ball, frames: 9}]\n")
    assert main(["render", str(board), "--store", str(tmp_path / "s"), "--json"]) == 3
    told = capsys.readouterr()
    assert not left
    (error,) = json.loads(told.out.splitlines()[-1])["errors"]
    assert error["message"].startswith("a local Ray could not be started, tried twice: The current node timed out")
    assert "Traceback" not in told.err
