"""The package `longtake`: lazy, typed, and as docs/python.md says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longtake
from cluster.cli import render as command
from cluster.cli.answer import Answer
from farm.errors import InputError

ROOT = Path(__file__).parents[2]
BOARD = "seed: 7\nshots:\n  - {id: one, prompt: a red ball rolls over grass, frames: 9}\n"


def blocks(kind: str) -> list[str]:
    """The examples of docs/python.md that are marked so."""
    text = (ROOT / "docs" / "python.md").read_text()
    return [part.partition("\n```")[0] for part in text.split(f"```{kind}\n")[1:]]


def test_importing_it_loads_nothing_else() -> None:
    code = (
        "import sys, longtake; print([m for m in ('farm', 'cluster', 'ray', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_typed() -> None:
    stub = ast.parse((ROOT / "longtake" / "__init__.pyi").read_text())
    typed = {a.name for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names} | {"__version__"}
    assert typed == set(longtake.__all__) == set(dir(longtake))
    assert all(getattr(longtake, name) is not None for name in longtake.__all__)
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        longtake.rendr  # noqa: B018


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longtake", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == f"longtake {longtake.__version__}"


def test_the_examples_without_ray_run_as_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("film.yaml").write_text(BOARD)
    names: dict[str, object] = {"longtake": longtake}
    first, *others = blocks("python")
    assert "longtake.render(" in first and len(others) == 3  # that one is run by tests/integration/test_python.py
    for block in others:
        exec(compile(block, "docs/python.md", "exec"), names)
    told = capsys.readouterr().out
    assert "tasks would run" in told and "17 (64, 96, 3) uint8" in told
    stages = others[-1]
    assert len([line for line in stages.splitlines() if line.strip()]) <= 10
    assert [p.name for p in folder.iterdir()] == ["film.yaml"]  # nothing else was written


def test_a_storyboard_is_a_file_a_mapping_or_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("film.yaml").write_text(BOARD)
    mapping = {"seed": 7, "shots": [{"id": "one", "prompt": "a red ball rolls over grass", "frames": 9}]}
    jobs = {longtake.plan(s).job for s in ("film.yaml", mapping, longtake.load_storyboard("film.yaml"))}
    assert len(jobs) == 1


def test_all_faults_are_raised_together() -> None:
    for read in (longtake.load_storyboard, longtake.plan):
        with pytest.raises(InputError) as caught:
            read({"stepz": 3, "shots": [{"id": "A b", "prompt": "x", "frames": 9}]})
        assert {p.key for p in caught.value.problems} == {"stepz", "shots[0].id"}


@pytest.mark.parametrize(("code", "error"), [(3, longtake.RenderError), (130, KeyboardInterrupt)])
def test_a_render_that_does_not_end_well_is_raised(
    code: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from farm.errors import Problem

    def fail(words: object, answer: Answer) -> int:
        return answer.fail(code, [Problem("the store burned down")])

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(error, match="burned" if code == 3 else None):
        longtake.render({"shots": [{"id": "a", "prompt": "x", "frames": 9}]}, store=str(tmp_path))


def test_a_mapping_is_read_as_it_is_written() -> None:
    board = longtake.load_storyboard({"title": "1e3", "shots": [{"id": "5e-1x", "prompt": "no", "frames": 9}]})
    assert (board.title, board.shots[0].id, board.shots[0].prompt) == ("1e3", "5e-1x", "no")
    with pytest.raises(InputError, match="plain values"):
        longtake.plan({"shots": [{"id": "a", "prompt": "x", "frames": 9, "image": Path("a.png")}]})


def test_a_store_that_fails_is_a_render_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object, answer: Answer) -> int:
        raise PermissionError("the store is shut")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(longtake.RenderError, match="shut"):
        longtake.render({"shots": [{"id": "a", "prompt": "x", "frames": 9}]})
