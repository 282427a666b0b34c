"""Shots in which nothing can be seen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from in_process import plan_of

from farm.errors import DamagedError
from farm.film.looks import BLACK, FLAT, FROZEN, Look, fault_of
from farm.models.checkpoint import BUILTIN_FOLDER
from farm.store.jobs import Job, find_warnings, publish_film, read_warnings
from farm.store.store import Store, artifact_path, sidecar_path

FILM: Any = None  # what the film is does not matter here
SEEN = Look(120.0, 40.0, 3.0)


@pytest.mark.parametrize(
    ("looks", "fault"),
    [
        ([SEEN], ""),
        ([Look(BLACK - 0.1, FLAT - 0.1, 0.0)], "is black"),
        ([Look(BLACK, FLAT - 0.1, 0.0)], "is one flat colour"),
        ([Look(200.0, FLAT, FROZEN)], ""),
        ([Look(200.0, 40.0, FROZEN - 0.01)], "does not move: all its frames are alike"),
        ([Look(200.0, 40.0, None)], ""),  # one frame
        ([Look(0.0, 0.0, 0.0), SEEN], ""),  # it begins in the dark
        ([Look(200.0, 40.0, 0.0), Look(200.0, 40.0, None)], "does not move: all its frames are alike"),
    ],
)
def test_a_shot_is_faulted_only_where_all_of_it_is(looks: list[Look], fault: str) -> None:
    assert fault_of(looks) == fault


def test_a_finished_film_names_the_shots_in_which_nothing_can_be_seen(tmp_path: Path) -> None:
    shots = [
        {"id": n, "prompt": "a red ball", "frames": 29, "seed": i} for i, n in enumerate(("seen", "black", "unknown"))
    ]
    board = {"size": "96x64", "shots": shots, "continuity": {"chunk_frames": 17, "overlap_frames": 5}}
    plan, store = plan_of(board, BUILTIN_FOLDER), Store(str(tmp_path))
    for shot in plan.shots:
        look = asdict(SEEN if shot.id == "seen" else Look(0.0, 0.0, 0.0))
        for key in shot.frames[shot.id == "unknown" :]:  # of one stretch nothing is known
            store.put(plan.tasks[key], b"frames of " + shot.id.encode(), info={"look": look})
    lines = "shots:\n  - {id: first}\n" + "".join(f"  - {{id: {s['id']}}}\n" for s in shots)  # as after --only
    (warning,) = find_warnings(store, Job("j", FILM, (), lines), plan)
    assert (warning.message, warning.key, warning.line) == ("shot black is black", "shots[2]", 4)


def test_what_is_noted_beside_an_artifact_is_not_needed_for_the_film(tmp_path: Path) -> None:
    shots = [{"id": "a", "prompt": "a red ball", "frames": 29}]
    plan, store = plan_of({"size": "96x64", "shots": shots}, BUILTIN_FOLDER), Store(str(tmp_path))
    for key in plan.shots[0].frames:
        store.put(plan.tasks[key], b"frames", info={"look": asdict(Look(0.0, 0.0, 0.0))})
        store.publish(sidecar_path(artifact_path(plan.tasks[key])), b"{")
    assert find_warnings(store, Job("j", FILM, (), ""), plan) == []
    store.publish("films/j/warnings.json", b"[")
    assert read_warnings(store, "j") == ()


def test_what_another_film_has_set_aside_is_missing_of_this_one_too(tmp_path: Path) -> None:
    """Two films share a clip: one has found it damaged, the other must not end for that it is gone."""
    shots = [{"id": "a", "prompt": "a red ball", "frames": 5}]
    plan, store = plan_of({"size": "96x64", "shots": shots}, BUILTIN_FOLDER), Store(str(tmp_path))
    for key in plan.targets:
        store.put(plan.tasks[key], b"done")
    store.forget(plan.tasks[plan.shots[0].clip])
    with pytest.raises(DamagedError, match="is missing"):
        publish_film(store, Job("j", FILM, (), ""), plan)
