"""Keys of the storyboard that name files or models: one annotated type, from which everything else follows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from farm.film.film import job_id_of
from farm.film.resolve import resolve
from farm.film.storyboard import PictureName, Strict, _named, names_in, parse_storyboard
from farm.models.checkpoint import find_checkpoint

BOARD = {
    "model": "m0", "continuity": {"model": "m1"}, "loras": [{"path": "l0"}],
    "shots": [
        {
            "model": "m2", "image": "p0", "last_image": "p1", "keyframes": [{"at": 1, "image": "p2"}],
            "references": ["p3", "p4"], "loras": [{"path": "l1"}, {"path": "l2"}], "continuity": {"model": "m3"},
        }
    ],
}  # fmt: skip


def test_every_name_is_found_where_it_stands() -> None:
    found = {name.value: (".".join(map(str, name.place)), name.what) for name in names_in(BOARD)}
    assert found == {
        "m0": ("model", "model"), "m1": ("continuity.model", "model"), "m2": ("shots.0.model", "model"),
        "m3": ("shots.0.continuity.model", "model"), "l0": ("loras.0.path", "lora"),
        "l1": ("shots.0.loras.0.path", "lora"), "l2": ("shots.0.loras.1.path", "lora"),
        "p0": ("shots.0.image", "picture"), "p1": ("shots.0.last_image", "picture"),
        "p2": ("shots.0.keyframes.0.image", "picture"), "p3": ("shots.0.references.0", "picture"),
        "p4": ("shots.0.references.1", "picture"),
    }  # fmt: skip


@pytest.mark.parametrize("data", [None, 3, [], {"shots": 4}, {"shots": [None, {"loras": {"path": 1}, "image": 2}]}])
def test_faults_of_the_schema_are_passed_over(data: Any) -> None:
    assert list(names_in(data)) == []


class Mask(Strict):
    path: PictureName | None = None


class Take(Strict):
    masks: list[Mask] | Mask | None = None


def test_a_key_that_names_a_file_is_found_as_soon_as_it_is_annotated() -> None:
    assert [n.value for n in _named(Take, {"masks": [{"path": "a"}, {"path": "b"}]}, ())] == ["a", "b"]
    assert [n.value for n in _named(Take, {"masks": {"path": "c"}}, ())] == ["c"]


def test_the_job_knows_a_file_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    def job_of(name: str, shade: int) -> tuple[str, set[str]]:
        Image.new("RGB", (96, 64), (shade, 0, 0)).save(tmp_path / name)
        board = f"shots: [{{id: a, prompt: a red ball, frames: 9, image: {name}}}]"
        model = find_checkpoint("builtin", beside=tmp_path)
        film = resolve(parse_storyboard(board.encode(), file=str(tmp_path / "film.yaml")), model).film
        return job_id_of(film, model), {file.sha256 for shot in film.shots for file in shot.files}

    job, files = job_of("one.png", 10)
    assert files == {hashlib.sha256((tmp_path / "one.png").read_bytes()).hexdigest()}
    assert job_of("two.png", 10)[0] == job
    assert job_of("one.png", 11)[0] != job
