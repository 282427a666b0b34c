"""Blend: chunks that are denoised together, and the options of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from continuity_case import frames_of, plan_of, write_picture
from hypothesis import assume, given
from hypothesis import strategies as st
from in_process import run_plan
from PIL import Image
from safetensors.torch import load

from farm.errors import InputError
from farm.film.chunks import Chunk, cut_into_chunks
from farm.film.film import job_id_of
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.models.frame_rule import FrameRule
from farm.plan.plan import make_plan
from farm.pools.pools import default_pools, numerics
from farm.task import Denoise, Slice
from pipelines import continuity, denoise
from pipelines.stage import Progress, as_bytes


def chunks_of(num_frames: int, *, longest: int, overlap: int) -> list[Chunk]:
    """A shot's chunks of `longest` latent frames at most, of which `overlap` are shared."""
    rule = FrameRule(4, 1)
    return cut_into_chunks(
        num_frames=num_frames, chunk_frames=rule.num_frames(longest), overlap_frames=rule.num_frames(overlap),
        rule=rule, context="latents",
    )  # fmt: skip


@given(longest=st.integers(2, 9), overlap=st.integers(1, 8), num_frames=st.integers(1, 300))
def test_weights_of_slices_add_up_to_one(longest: int, overlap: int, num_frames: int) -> None:
    assume(overlap < longest)
    chunks = chunks_of(num_frames, longest=longest, overlap=overlap)
    slices = [Slice(c.first_latent, c.num_latents, 0, None) for c in chunks]
    weights = continuity.blend_weights(slices)
    total = torch.zeros(slices[-1].first_latent + slices[-1].num_latents)
    for s, weight in zip(slices, weights, strict=True):
        assert (weight > 0).all()
        total[s.first_latent : s.first_latent + s.num_latents] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    if len(slices) == 1:
        assert torch.equal(weights[0], torch.ones(slices[0].num_latents))


def test_a_constant_prediction_is_blended_to_itself() -> None:
    slices = [Slice(0, 5, 0, None), Slice(3, 5, 0, None), Slice(5, 5, 0, None)]
    grid = dict(enumerate(slices))
    whole = continuity.blend([grid], dict.fromkeys(grid, lambda x, t: torch.full_like(x, 3.0)), step_of=lambda t: 0)
    assert torch.allclose(whole(torch.zeros(1, 2, 10, 2, 2), torch.tensor(1.0)), torch.full((1, 2, 10, 2, 2), 3.0))


@given(num_frames=st.integers(30, 300), longest=st.integers(3, 9), overlap=st.integers(1, 4), step=st.integers(0, 9))
def test_shifted_grids_cover_every_frame(num_frames: int, longest: int, overlap: int, step: int) -> None:
    assume(overlap < longest)
    chunks = chunks_of(num_frames, longest=longest, overlap=overlap)
    slices = tuple(Slice(c.first_latent, c.num_latents, 2 * i, 2 * i + 1) for i, c in enumerate(chunks))
    total = slices[-1].first_latent + slices[-1].num_latents
    request = Denoise("wan", "text", (1, 16, total, 2, 2), 9, 1.0, 1.0, 0, slices, shift=True)
    grids = continuity.grids_of(request)
    assert list(grids[0].values()) == list(slices)
    assert sorted(i for grid in grids for i in grid) == list(range(sum(map(len, grids))))
    grid = list(grids[step % len(grids)].values())
    covered = {f for s in grid for f in range(s.first_latent, s.first_latent + s.num_latents)}
    assert covered == set(range(total))
    assert all(s.num_latents == longest for s in grid)
    assert all((s.first_latent == 0) == (s.prompt == 0) for s in grid)  # only the first is told that the stream begins
    assert all((w > 0).all() for w in continuity.blend_weights(grid))


def test_free_noise_is_the_first_windows_shuffled() -> None:
    noise = torch.randn(1, 2, 14, 2, 2)
    made = continuity.free_noise(noise, window=5, stride=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made[:, :, :5], noise[:, :, :5])
    for at in range(5, 14, 3):
        block, source = made[:, :, at : at + 3], made[:, :, at - 5 : at - 2]
        matches = [[bool(torch.equal(block[:, :, i], source[:, :, j])) for j in range(3)] for i in range(3)]
        assert [sum(row) for row in matches] == [1, 1, 1]
        assert [sum(column) for column in zip(*matches, strict=True)] == [1, 1, 1]


@pytest.mark.parametrize("option", [{"noise": "free"}, {"shift": True}, {"anchor": True}])
def test_an_option_of_blend_changes_the_take_and_not_its_length(
    option: dict[str, Any], able: Checkpoint, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 48), (200, 30, 40)).save(picture)

    def latents(**more: Any) -> torch.Tensor:
        mode = {"mode": "blend", "chunk_frames": 17, "overlap_frames": 5, **more}
        shots = [{"id": "a", "prompt": "a red ball", "frames": 29, "image": "picture.png", "continuity": mode}]
        plan = plan_of(able, tmp_path, shots=shots)
        made = run_plan(plan, dict.fromkeys(plan.sources, picture))
        (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
        assert len(frames_of(made, plan.shots[0].frames)) == 29
        return load(as_bytes(made[task.key]))["latents"]

    plain, changed = latents(), latents(**option)
    assert changed.shape == plain.shape
    assert torch.isfinite(changed).all()
    assert torch.equal(changed[:, :, 0], plain[:, :, 0])  # the picture
    assert not torch.equal(changed[:, :, 3:], plain[:, :, 3:])


def test_an_anchor_is_seen_by_slices_that_have_no_context() -> None:
    seen = []

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x + 1

    anchor, latents = torch.full((1, 2, 1, 2, 2), 7.0), torch.zeros(1, 2, 3, 2, 2)
    made = continuity.anchored(predict, anchor)(latents, torch.tensor(1.0))
    assert torch.equal(made, latents + 1)
    assert torch.equal(seen[0], torch.cat([anchor, latents], 2))


def test_a_shot_may_have_a_model_of_its_own(able: Checkpoint, tmp_path: Path) -> None:
    other = find_checkpoint("builtin", beside=Path())
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 9, "steps": 2},
        {"id": "b", "prompt": "a red ball", "frames": 9, "steps": 2, "model": "other"},
        {"id": "c", "prompt": "a red ball", "frames": 9, "continue_from": "b"},
    ]
    board = {"size": "64x48", "guidance": 1.0, "shots": shots}
    draft = parse_storyboard(yaml.safe_dump(board).encode(), file=str(tmp_path / "board.yaml"))
    with pytest.raises(InputError, match="of the same model"):
        resolve(draft, able, others={"other": other})
    board["shots"] = shots[:2]
    draft = parse_storyboard(yaml.safe_dump(board).encode(), file=str(tmp_path / "board.yaml"))
    resolved = resolve(draft, able, others={"other": other})
    assert [s.model for s in resolved.film.shots] == [0, 1]
    pools = numerics(default_pools(num_cpus=2, num_gpus=0))
    plan = make_plan(resolved.film, resolved.models, pools, container="mp4", stills=False)
    of_b = [plan.tasks[k] for k in plan.shots[1].tasks if plan.tasks[k].stage in ("encode", "denoise", "decode")]
    assert {t.model for t in of_b} == {other.folder}
    assert {v for t in of_b for _, v in t.components} <= set(other.fingerprints.values())
    run_plan(plan)
    same = resolve(draft, able, others={"other": able})
    assert [s.model for s in same.film.shots] == [0, 0]
    assert job_id_of(resolved.film, *resolved.models) != job_id_of(same.film, *same.models)


def test_a_blended_take_is_one_task_that_predicts_slice_by_slice(able: Checkpoint, tmp_path: Path) -> None:
    mode = {"mode": "blend", "chunk_frames": 9, "overlap_frames": 5}
    schedule = [{"at": 0, "prompt": "a red ball"}, {"at": 1.5, "prompt": "a blue cube"}]
    shots = [{"id": "a", "prompts": schedule, "frames": 22, "continuity": mode}]
    plan = plan_of(able, tmp_path, shots=shots)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    request = task.request
    assert isinstance(request, Denoise)
    assert request.latent_shape == (1, 16, 7, 6, 8)
    assert [(s.first_latent, s.num_latents) for s in request.slices] == [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3)]
    assert [s.prompt for s in request.slices] == [0, 0, 2, 2, 2]  # from frame 12; slices add 0, 9, 13, 17, 21
    made = run_plan(plan)
    assert len(frames_of(made, plan.shots[0].frames)) == 22
    assert len(plan.shots[0].frames) == 5  # decoded chunk by chunk all the same

    stage = denoise.Stage(able.folder)
    inputs = [as_bytes(made[k]) for k in task.inputs]
    (wholly,) = load(as_bytes(made[task.key])).values()
    one = replace(request, slices=(Slice(0, 7, 0, 1),))
    (whole,) = load(as_bytes(stage.run(one, inputs, Progress()).artifact)).values()
    assert not torch.allclose(whole, wholly)  # one slice over all is another film


def test_a_blended_take_can_go_on_and_begin_with_a_picture(able: Checkpoint, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    mode = {"mode": "blend", "chunk_frames": 9, "overlap_frames": 5}
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 17, "image": "a.png", "continuity": mode},
        {"id": "b", "prompt": "a red ball", "frames": 17, "continue_from": "a", "continuity": mode},
    ]
    plan = plan_of(able, tmp_path, shots=shots)
    made = run_plan(plan, dict.fromkeys(plan.sources, tmp_path / "a.png"))
    one, two = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    first, second = (load(as_bytes(made[t.key]))["latents"] for t in (one, two))
    picture = load(as_bytes(made[one.inputs[-1]]))["latents"]
    assert torch.equal(first[:, :, :1], picture)
    assert torch.equal(second[:, :, :2], first[:, :, -2:])
    assert len(frames_of(made, plan.shots[1].frames)) == 17
