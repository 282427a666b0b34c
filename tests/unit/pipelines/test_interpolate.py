"""Frames between frames: at the right times, the same whether a shot is one piece or several, never across a cut."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from in_process import plan_of, run_plan

from farm.errors import InputError
from farm.film.interpolation import rife_weights
from farm.plan.plan import Plan
from farm.task import Interpolate, Strip, WriteClip
from pipelines import rife_setup
from pipelines.builtin import world
from pipelines.frames import read_lossless, write_lossless
from pipelines.interpolate import Stage, by_flow, by_rife
from pipelines.rife import Rife
from pipelines.stage import Progress, as_bytes
from pipelines.strips import pairs

needs_rife = pytest.mark.skipif(not rife_weights().is_file(), reason="RIFE's weights could not be fetched")


def scene(text: str, *, fps: int, num_frames: int) -> np.ndarray:
    return world.render(world.scene_of(text, seed=3), num_frames=num_frames, fps=fps)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@given(
    num_frames=st.integers(1, 30),
    step=st.sampled_from(["1/3", "1/2", "2/3", "1", "4/3", "2", "1000/3003"]),
    first=st.integers(0, 20),
    count=st.integers(1, 40),
)
def test_every_time_lies_between_the_two_frames_that_are_mixed(
    num_frames: int, step: str, first: int, count: int
) -> None:
    frames = [np.full((1, 1, 3), i, np.uint8) for i in range(num_frames)]
    got = list(pairs(frames, Strip(first, count, 0, 1, step)))
    assert len(got) == count
    for j, (a, b, share) in enumerate(got, start=first):
        at = min(j * Fraction(step), Fraction(num_frames - 1))
        assert a[0, 0, 0] + share == at
        assert (b is None) == (share == 0)
        assert b is None or b[0, 0, 0] == a[0, 0, 0] + 1


def interpolated(plan: Plan) -> list[np.ndarray]:
    made = run_plan(plan)
    tasks = [t for t in plan.tasks.values() if isinstance(t.request, Interpolate)]
    return [f for t in tasks for f in read_lossless(as_bytes(made[t.key]))]


@pytest.mark.parametrize("output_fps", [24, 12.5])
def test_a_shot_of_several_pieces_is_interpolated_as_if_it_were_one(tmp_path: Path, output_fps: float) -> None:
    shot = {"id": "a", "prompt": "a red ball rolls over grass", "frames": 33, "steps": 2}
    shot["continuity"] = {"color_match": False}
    plan = plan_of({"shots": [shot], "output": {"fps": output_fps, "interpolate": "flow"}}, Path("builtin"))
    pieces = interpolated(plan)
    made = run_plan(plan)
    frames = [f for key in plan.shots[0].frames for f in read_lossless(as_bytes(made[key]))]
    assert len(plan.shots[0].frames) == 3
    delivered = round(33 * output_fps / 8)
    step = Fraction(8) / Fraction(str(output_fps))
    whole = [
        a if b is None else by_flow(a, b, float(share))
        for a, b, share in pairs(frames, Strip(0, delivered, 0, 1, str(step)))
    ]
    assert len(pieces) == delivered
    assert all(np.array_equal(a, b) for a, b in zip(pieces, whole, strict=True))


def test_clips_take_interpolated_frames_and_no_cut_is_crossed(tmp_path: Path) -> None:
    shots = [{"id": i, "prompt": "a red ball", "frames": 9} for i in "ab"]
    plan = plan_of({"shots": shots, "output": {"fps": 24, "interpolate": "flow"}}, Path("builtin"))
    for shot in plan.shots:
        clip = plan.tasks[shot.clip]
        assert isinstance(clip.request, WriteClip)
        assert clip.request.strip.step == "1/1"
        (between,) = clip.inputs
        assert plan.tasks[between].stage == "interpolate"
        assert set(plan.tasks[between].inputs) == set(shot.frames)  # nothing of the other shot


def test_nothing_is_interpolated_where_every_delivered_time_has_a_frame() -> None:
    for output in ({}, {"fps": 4}, {"fps": 24, "interpolate": "none"}):
        plan = plan_of({"shots": [{"id": "a", "prompt": "a red ball", "frames": 9}], "output": output}, Path("builtin"))
        assert not [t for t in plan.tasks.values() if t.stage == "interpolate"]


def test_flow_follows_what_moves_and_beats_a_mix() -> None:
    fine = scene("a red ball rolls right over sand at day", fps=24, num_frames=28)
    for k in range(0, 27, 9):
        mixed = (2 * fine[k].astype(float) + fine[k + 9]) / 3
        assert psnr_db(by_flow(fine[k], fine[k + 9], 1 / 3), fine[k + 3]) > psnr_db(mixed, fine[k + 3]) + 2


@needs_rife
def test_rife_beats_a_mix_and_takes_any_size() -> None:
    between = by_rife(Rife.load(rife_weights(), device="cpu", dtype=torch.float32))
    fine = scene("a red ball rolls right over sand at day", fps=24, num_frames=19)
    for k in (0, 9):
        mixed = (2 * fine[k].astype(float) + fine[k + 9]) / 3
        assert psnr_db(between(fine[k], fine[k + 9], 1 / 3), fine[k + 3]) > psnr_db(mixed, fine[k + 3]) + 3
    assert between(fine[0][:50, :70], fine[1][:50, :70], 0.5).shape == (50, 70, 3)


def test_without_rifes_weights_the_task_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable() -> bytes:
        raise OSError("no network")

    monkeypatch.setenv("LONGTAKE_RIFE", str(tmp_path / "none.safetensors"))
    monkeypatch.setattr(rife_setup, "download", unreachable)
    with pytest.raises(InputError, match="rife_setup"):
        Stage("", ("rife-4.6",))
    rife_weights().write_bytes(b"others")
    with pytest.raises(InputError, match="SHA-256"):
        Stage("", ("rife-4.6",))
    video = write_lossless(np.zeros((2, 16, 16, 3), np.uint8), width_px=16, height_px=16)
    made = Stage().run(Interpolate(Strip(0, 4, 0, 1, "1/2"), "flow"), [video], Progress())
    assert len(list(read_lossless(as_bytes(made.artifact)))) == 4


def test_weights_of_another_hash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=hashlib.sha256(b"other").hexdigest()):
        rife_setup.convert(b"other", tmp_path / "rife.safetensors")
    assert not list(tmp_path.iterdir())
