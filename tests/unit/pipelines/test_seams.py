"""Seams: a cut, a step of light and a jump are seen; a moving picture that goes on is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from in_process import run_plan

from farm.film.chunks import cut_into_chunks
from farm.film.film import FilmShot, latent_starts
from farm.models.frame_rule import FrameRule
from farm.task import MeasureSeams, Strip
from pipelines.builtin import world
from pipelines.seams import measure_seams
from pipelines.stage import as_bytes

INNER = (5, 9, 13, 21, 25)
SHOT = Strip(0, 29, 0, 1, "1/1")


def going_on(num_frames: int = 29, *, seed: int = 4, first_frame: int = 0) -> np.ndarray:
    scene = world.scene_of("a red ball rolls right over sand at day", seed=seed)
    return world.render(scene, num_frames=num_frames, first_frame=first_frame)


def seam_of(video: np.ndarray) -> dict[str, float]:
    (seam,) = measure_seams(MeasureSeams((17,), (), INNER, None, SHOT), video)
    assert (seam.pop("frame"), seam.pop("kind")) == (17, "join")
    return seam


def test_a_film_that_goes_on_has_no_seam() -> None:
    seam = seam_of(going_on())
    assert seam["mad_ratio"] < 1.2
    assert seam["warp_ratio"] < 1.5
    assert abs(seam["flow_jump"]) < 0.3
    assert abs(seam["delta_e"]) < 0.5


def test_a_step_of_light_is_seen_in_colour_and_warping() -> None:
    video = going_on().astype(float)
    video[17:] *= 0.94
    seam = seam_of(video.astype(np.uint8))
    assert seam["delta_e"] > 1.5
    assert seam["warp_ratio"] > 2


def test_a_jump_is_seen_in_difference_and_flow() -> None:
    video = np.concatenate([going_on(17), going_on(12, first_frame=23)])
    seam = seam_of(video)
    assert seam["mad_ratio"] > 1.5
    assert seam["flow_jump"] > 1


def test_a_cut_is_measured_against_the_shot_it_opens() -> None:
    video = np.concatenate([going_on(9, seed=8), going_on()])
    cut, join = measure_seams(MeasureSeams((17,), ((0, "cut"),), INNER, None, SHOT), video, first=-9)
    assert (cut["frame"], cut["kind"]) == (0, "cut")
    assert cut["mad_ratio"] > 3 * join["mad_ratio"]


@pytest.mark.parametrize(("context", "overlap"), [("latents", 5), ("frames", 5), ("last_frame", 1), ("none", 0)])
def test_latent_frames_begin_where_the_decoder_begins_them(context: str, overlap: int) -> None:
    rule = FrameRule(4, 1)
    chunks = cut_into_chunks(num_frames=45, chunk_frames=17, overlap_frames=overlap, rule=rule, context=context)
    shot = FilmShot(
        id="a", model=0, next_model=0, prompts=((0, "x"),), negative_prompt="", num_frames=45, before_frames=0,
        chunks=tuple(chunks), image=None, last_image=None, keyframes=(), references=(), loras=(),
        continue_from=None, transition=None, seed=0, steps=1, guidance=1.0, guidance_low=1.0, next_guidance=(1.0, 1.0),
        num_delivered=45, mode="extend",
        chunk_frames=17, overlap_frames=overlap, context=context, color_match=True, max_seam=0.0, rerolls=0,
        noise="independent", anchor=False, shift=False,
    )  # fmt: skip
    joins, inner = latent_starts(shot, rule)
    assert joins == tuple(c.first_frame for c in chunks[1:])
    expected = {
        "latents": (5, 9, 13, 21, 25, 33, 37), "frames": (5, 9, 13, 21, 25, 33, 37),
        "last_frame": (5, 9, 13, 21, 25, 29, 37, 41), "none": (5, 9, 13, 18, 22, 26, 30, 35, 39, 43),
    }[context]  # fmt: skip
    assert inner == expected


def test_a_plan_measures_joins_and_cuts_and_not_transitions(tmp_path: Path) -> None:
    from in_process import resolve_board

    from farm.models.checkpoint import find_checkpoint
    from farm.plan.plan import make_plan
    from farm.pools.pools import default_pools, numerics

    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 30},
        {"id": "b", "prompt": "a red ball", "frames": 9},
        {"id": "c", "prompt": "a red ball", "frames": 9, "transition": {"kind": "crossfade"}},
        {"id": "d", "prompt": "a red ball", "frames": 20, "continue_from": "c"},
    ]
    builtin = find_checkpoint("builtin", beside=Path())
    board = {"size": "64x48", "steps": 1, "guidance": 1.0, "shots": shots}
    numbers = numerics(default_pools(num_cpus=2, num_gpus=0))
    plan = make_plan(resolve_board(board, builtin).film, (builtin,), numbers, container="mp4", stills=False)
    asked = {s.id: plan.tasks[s.seams].request if s.seams else None for s in plan.shots}
    assert asked["c"] is None
    for shot, joins, starts in (("a", (17, 29), ()), ("b", (), ((0, "cut"),)), ("d", (12,), ((0, "join"),))):
        request = asked[shot]
        assert isinstance(request, MeasureSeams)
        assert (request.joins, request.starts) == (joins, starts), shot
    made = run_plan(plan)
    lines = {s.id: as_bytes(made[s.seams]).splitlines() for s in plan.shots if s.seams}
    assert {k: len(v) for k, v in lines.items()} == {"a": 2, "b": 1, "d": 2}


def test_a_film_that_goes_on_has_not_drifted() -> None:
    seam = seam_of(going_on())
    assert 0.9 < seam["sharpness"] < 1.1
    assert 0.95 < seam["contrast"] < 1.05
    assert seam["moving_delta_e"] < 3


def test_what_changes_slowly_is_seen_where_no_join_shows_it() -> None:
    """Each change is spread over all frames, so that the frames beside the join are alike."""
    video = going_on()
    share = np.linspace(0, 1, len(video))[:, None, None, None]
    soft = np.stack([cv2.GaussianBlur(f, (0, 0), 0.1 + 1.5 * i / len(video)) for i, f in enumerate(video)])
    pale = (video * (1 - 0.4 * share) + 128 * 0.4 * share).astype(np.uint8)
    assert seam_of(soft)["sharpness"] < 0.5
    assert seam_of(pale)["contrast"] < 0.85
    for changed in (soft, pale):
        assert seam_of(changed)["mad_ratio"] < 1.3


def test_a_ball_that_changes_its_colour_is_seen_though_the_picture_does_not() -> None:
    def ball(colour: tuple[int, int, int], i: int) -> np.ndarray:
        picture = np.random.default_rng(0).integers(90, 110, (64, 96, 3), dtype=np.uint8)
        return cv2.circle(picture, (12 + 2 * i, 40), 6, colour, -1)

    red, orange = (200, 30, 20), (230, 140, 20)
    same = seam_of(np.stack([ball(red, i) for i in range(29)]))
    turned = seam_of(np.stack([ball(red if i < 17 else orange, i) for i in range(29)]))
    assert same["moving_delta_e"] < 6 < 15 < turned["moving_delta_e"]
    assert turned["delta_e"] < 3
    still = seam_of(np.stack([ball(red, 0)] * 29))
    assert still["moving_delta_e"] is None
