"""Shots in which nothing can be seen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from in_process import plan_of

from farm.film.looks import BLACK, FLAT, FROZEN, Look, fault_of
from farm.models.checkpoint import BUILTIN_FOLDER
from farm.store.jobs import find_warnings
from farm.store.store import Store

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
    (warning,) = find_warnings(store, plan)
    assert (warning.message, warning.key) == ("shot black is black", "shots[1]")
