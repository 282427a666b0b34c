"""Colours that step where chunks join: measured, solved for, and taken out; what moves by itself stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import plan_of, run_plan

from farm.task import Interpolate, MeasureColour, SolveColour, WriteClip
from pipelines.builtin import world
from pipelines.colour import MAX_CORRECTION, Corrections, lab_of, measure_colour, solve_colour
from pipelines.stage import as_bytes
from pipelines.strips import source_frames

INNER = (4, 8, 16, 20)


def take(num_frames: int = 24) -> np.ndarray:
    return world.render(world.scene_of("a blue ball rolls right over grass at day", seed=2), num_frames=num_frames)


def shifted(frames: np.ndarray, lab: tuple[float, float, float]) -> np.ndarray:
    moved = Corrections((0,), np.array([lab], np.float32))
    return np.stack([moved.apply(f, 0) for f in frames])


@pytest.mark.parametrize("lab", [(2.0, 0.0, 0.0), (-1.5, 1.0, -1.0)])
def test_a_step_of_colour_is_measured_and_motion_is_not(lab: tuple[float, float, float]) -> None:
    video = take()
    request = MeasureColour(12, INNER, 0)
    assert np.abs(json.loads(measure_colour(request, video))["lab"]).max() < 0.3
    stepped = np.concatenate([video[:12], shifted(video[12:], lab)])
    assert json.loads(measure_colour(request, stepped))["lab"] == pytest.approx(lab, abs=0.35)


def test_colours_that_change_all_along_are_no_step() -> None:
    video = take()
    fading = np.stack([shifted(f[None], (-0.6 * i, 0, 0))[0] for i, f in enumerate(video)])
    assert np.abs(json.loads(measure_colour(MeasureColour(12, INNER, 0), fading))["lab"]).max() < 0.35


def test_the_pulse_of_an_autoencoder_is_no_step() -> None:
    video, light = take(), np.zeros(24)
    light[4:] += 0.8  # at every place where a latent frame begins
    for at in (8, 12, 16, 20):
        light[at:] += 0.8
    pulsing = np.stack([shifted(f[None], (float(v), 0, 0))[0] for f, v in zip(video, light, strict=True)])
    assert np.abs(json.loads(measure_colour(MeasureColour(12, INNER, 0), pulsing))["lab"]).max() < 0.3


def solved(steps: list[list[float]], *, joins: tuple[int, ...] = (), before: bytes | None = None) -> np.ndarray:
    measures = [json.dumps({"lab": s}).encode() for s in steps]
    joins = joins or tuple(range(1, len(steps) + 1))
    request = SolveColour(joins, max(joins) + 1, before is not None)
    return np.array(json.loads(solve_colour(request, measures, before))["lab"])


def test_corrections_undo_the_steps_and_the_first_chunk_stays() -> None:
    steps = [[1.0, 0, 0], [-2.0, 0.5, 0], [0.5, 0, 1.0]]
    found = solved(steps)
    assert np.array_equal(found[0], np.zeros(3))
    assert np.abs(np.diff(found, axis=0) + np.array(steps)).max() < 0.1


def test_corrections_are_bounded_and_a_change_of_scene_is_left_alone() -> None:
    drift = solved([[2.0, 0, 0]] * 30)
    assert np.linalg.norm(drift, axis=1).max() <= MAX_CORRECTION + 1e-2
    assert np.array_equal(solved([[30.0, 0, 0]]), np.zeros((2, 3)))


def test_a_shot_that_goes_on_begins_with_the_others_last_correction() -> None:
    before = json.dumps({"lab": [[0, 0, 0], [3.0, 0, 0]]}).encode()
    found = solved([[0.0, 0, 0], [-1.0, 0, 0]], joins=(1, 2), before=before)
    assert found[:, 0] == pytest.approx([3.0, 3.0, 4.0], abs=0.25)


def test_frames_that_another_shot_had_generated_have_its_correction() -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 30, "steps": 2},
        {"id": "b", "prompt": "a red ball", "frames": 20, "steps": 2, "continue_from": "a"},
        {"id": "c", "prompt": "a red ball", "frames": 3, "steps": 2, "continue_from": "a"},
        {
            "id": "d",
            "prompt": "a red ball",
            "frames": 9,
            "steps": 2,
            "continue_from": "a",
            "continuity": {"color_match": False},
        },
    ]
    plan = plan_of({"shots": shots}, Path("builtin"))
    strips = {s.id: plan.tasks[s.clip].request.strip for s in plan.shots}
    assert strips["a"].chunk_starts == (0, 17, 29)
    assert strips["b"].chunk_starts == (0, 3, 15)  # frames 0 to 2 were generated with a
    assert strips["c"].chunk_starts == (0,)
    solves = {t.label: t.request for t in plan.tasks.values() if isinstance(t.request, SolveColour)}
    assert solves["b"] == SolveColour((1, 2), 3, True)
    assert solves["c"] == SolveColour((), 1, True)  # the other's last correction goes on
    assert not solves["d"].joins


def test_a_strip_names_the_corrections_of_its_own_chunks_only() -> None:
    shots = [{"id": "a", "prompt": "a red ball", "frames": 65, "steps": 2}]
    plan = plan_of({"shots": shots, "output": {"fps": 24, "interpolate": "flow"}}, Path("builtin"))
    strips = [t.request.strip for t in plan.tasks.values() if isinstance(t.request, Interpolate)]
    assert [(s.chunk_starts, s.first_chunk) for s in strips] == [
        ((0, 17), 0), ((17, 29), 1), ((29, 41), 2), ((41, 53), 3), ((53,), 4),
    ]  # fmt: skip


def test_the_joins_of_a_take_step_less_when_colours_are_matched() -> None:
    shot = {"id": "a", "prompt": "a red ball rolls over sand at sunset", "frames": 41, "steps": 4}
    plan = plan_of({"shots": [shot]}, Path("builtin"))
    made = run_plan(plan)
    (clip,) = (t for t in plan.tasks.values() if isinstance(t.request, WriteClip))
    (solve,) = (t for t in plan.tasks.values() if isinstance(t.request, SolveColour))
    assert clip.inputs[-1] == solve.key
    assert clip.request.strip.chunk_starts == (0, 17, 29)
    inputs = [as_bytes(made[k]) for k in clip.inputs]
    raw = list(source_frames(replace(clip.request.strip, chunk_starts=()), inputs))
    seen = list(source_frames(clip.request.strip, inputs))
    lab = np.array(json.loads(inputs[-1])["lab"])
    for chunk, (first, end) in enumerate(((0, 17), (17, 29), (29, 41))):
        moved = np.mean([lab_of(seen[i]).mean((0, 1)) - lab_of(raw[i]).mean((0, 1)) for i in range(first, end)], 0)
        if np.abs(lab[chunk]).max() > 0.5:
            assert moved == pytest.approx(lab[chunk], abs=0.4)

    shot["continuity"] = {"color_match": False}
    without = plan_of({"shots": [shot]}, Path("builtin"))
    assert not [t for t in without.tasks.values() if isinstance(t.request, SolveColour | MeasureColour)]
