"""Transitions take exactly their frames, and what is beside them is coded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from continuity_case import film_frames, frames_of, plan_of
from in_process import run_plan

from farm.models.checkpoint import Checkpoint
from farm.task import MixFrames


@pytest.mark.parametrize("kind", ["crossfade", "fadeblack", "fadewhite", "wipeleft", "slideup"])
def test_a_transition_takes_exactly_its_frames_from_both_shots(kind: str, able: Checkpoint, tmp_path: Path) -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 9},
        {"id": "b", "prompt": "a cube", "frames": 9, "transition": {"kind": kind, "seconds": 0.5}},
        {"id": "c", "prompt": "a cube", "frames": 5, "seed": 9},
    ]
    plan = plan_of(able, tmp_path, shots=shots, stills=True, output={"fps": 16, "interpolate": "none"})
    made = run_plan(plan)
    assert len(film_frames(made[plan.film])) == 18 + 18 + 10 - 8
    for shot, length in zip(plan.shots, (18, 18, 10), strict=True):
        assert len(film_frames(made[shot.clip])) == length
    (mix,) = (t for t in plan.tasks.values() if isinstance(t.request, MixFrames))
    mixed = frames_of(made, (mix.key,)).astype(int)
    sides = [frames_of(made, shot.frames).repeat(2, 0).astype(int) for shot in plan.shots[:2]]
    leaves, comes = sides[0][-8:], sides[1][:8]
    assert np.abs(mixed[0] - leaves[0]).mean() < 2  # all of the shot that leaves (a wipe and a slide are a row in)
    light = mixed.mean((1, 2, 3))
    if kind == "fadeblack":
        assert light.min() < 0.5 * min(leaves.mean(), comes.mean())
    elif kind == "fadewhite":
        assert light.max() > 1.5 * max(leaves.mean(), comes.mean())
    else:
        assert np.abs(mixed[-1] - comes[-1]).mean() < np.abs(mixed[-1] - leaves[-1]).mean()
    if kind == "crossfade":
        expected = [leaves[j] + (comes[j] - leaves[j]) * j / 8 for j in range(8)]
        assert np.abs(mixed - np.stack(expected)).max() <= 2
    names = [z for key in plan.stills for z in _names(made[key])]
    assert len(names) == 38


def _names(archive: Any) -> list[str]:
    import zipfile

    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


def test_bodies_are_coded_once_for_the_shot_and_the_film(able: Checkpoint, tmp_path: Path) -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 9},
        {"id": "b", "prompt": "a cube", "frames": 9, "transition": {"kind": "crossfade", "seconds": 0.5}},
    ]
    plan = plan_of(able, tmp_path, shots=shots)
    film, (one, two) = plan.tasks[plan.film], plan.shots
    assert set(film.inputs) & set(plan.tasks[one.clip].inputs)
    assert set(film.inputs) & set(plan.tasks[two.clip].inputs)
    assert len(film.inputs) == 3


def test_a_transition_as_long_as_a_shot_leaves_no_body(able: Checkpoint, tmp_path: Path) -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 8},
        {"id": "b", "prompt": "a cube", "frames": 8, "transition": {"kind": "crossfade", "seconds": 1}},
    ]
    plan = plan_of(able, tmp_path, shots=shots)
    made = run_plan(plan)
    assert len(film_frames(made[plan.film])) == 8
    assert [len(film_frames(made[s.clip])) for s in plan.shots] == [8, 8]
