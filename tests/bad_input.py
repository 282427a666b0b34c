"""A storyboard that is good, and how a command must refuse what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.main import main

GOOD = """\
title: A test
size: 64x48
fps: 8
steps: 2
shots:
  - id: one
    prompt: a red ball
    frames: 9
"""
SHOT = "shots:\n  - id: one\n    prompt: a red ball\n    frames: 9\n"


def check_faults(
    code: int, answer: dict[str, Any], told: str, board: Path, line: int | None, key: str, words: tuple[str, ...]
) -> None:
    assert code == 2
    assert "Traceback" not in told
    assert answer["status"] == "failed"
    faults = [e for e in answer["errors"] if e["key"] == key and e["line"] == line and e["file"] == str(board)]
    assert any(word in fault["message"] for fault in faults for word in words), answer["errors"]
    assert all(e["message"] in told for e in answer["errors"])


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], str]:
    code = main([*argv, "--json"])
    seen = capsys.readouterr()
    return code, json.loads(seen.out.splitlines()[-1]), seen.err
