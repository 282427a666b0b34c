"""A store that was written by 0.1.0 (commit 1a1ce7b) is still read; its artifacts have keys of that version."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.main import main

DATA = Path(__file__).parents[2] / "data" / "store_of_0.1.0.zip"
JOB = "06f822e84a89702c"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a storyboard with a picture, and of the store in which it was rendered."""
    with zipfile.ZipFile(DATA) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0, capsys.readouterr()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return answer


def test_its_jobs_attempts_and_ledger_are_read(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(old / "store")
    (job,) = told(capsys, "list", "--store", store)["jobs"]
    assert (job["job"], job["status"], job["title"]) == (JOB, "completed", "An old film")
    shown = told(capsys, "show", JOB, "--store", store)
    assert [r["state"] for r in shown["log"] if r["kind"] == "state"] == ["queued", "active", "completed"]
    assert len(shown["attempts"]) == 12 and {a["outcome"] for a in shown["attempts"]} == {"succeeded"}
    assert told(capsys, "stats", "--store", store)["total"]["attempts"] == 12
    assert told(capsys, "store", "verify", "--store", store)["problems"] == []
    assert main(["report", JOB, "--store", store]) == 0
    assert "An old film" in (old / "store" / "films" / JOB / "report.html").read_text()


def test_a_film_of_it_would_be_rendered_anew(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys have changed once since (CHANGELOG.md), and the plan says so."""
    planned = told(capsys, "plan", str(old / "film.yaml"), "--store", str(old / "store"))
    assert planned["tasks"]["reused"] == 0
    assert any("version" in line for lines in planned["why"].values() for line in lines)
