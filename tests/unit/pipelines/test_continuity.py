"""Long shots through the stages in one process: streams of latents, pictures, context, transitions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import WanImageToVideoPipeline
from hypothesis import assume, given
from hypothesis import strategies as st
from in_process import run_plan
from PIL import Image
from safetensors.torch import load, save
from tiny_checkpoints import make_wan

from farm.checkpoint import Checkpoint, find_checkpoint
from farm.chunks import FrameRule, cut_into_chunks
from farm.errors import InputError
from farm.film import job_id_of
from farm.plan import Plan, make_plan
from farm.pools import default_pools, numerics
from farm.resolve import resolve
from farm.storyboard import parse_storyboard
from farm.task import Decode, Denoise, EncodeFrames, EncodeText, Known, MixFrames, Slice
from pipelines import continuity, decode, denoise
from pipelines.families import wan
from pipelines.frames import read_lossless
from pipelines.load import load_component, own_memory
from pipelines.stage import Progress, as_bytes

BOARD: dict[str, Any] = {
    "size": "64x48", "fps": 8, "steps": 2, "seed": 3, "guidance": 3.0,
    "continuity": {"mode": "extend", "chunk_frames": 9, "overlap_frames": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint that takes timesteps per token, with the contexts that the built-in model has."""
    checkpoint = find_checkpoint(str(make_wan(tmp_path_factory.mktemp("wan") / "w", per_token=True)), beside=Path())
    contexts = ("latents", "frames", "last_frame")
    return replace(checkpoint, card=replace(checkpoint.card, contexts=contexts))


def plan_of(able: Checkpoint, folder: Path, *, stills: bool = False, **board: Any) -> Plan:
    text = yaml.safe_dump(BOARD | board)
    film = resolve(parse_storyboard(text.encode(), file=str(folder / "b.yaml")), able).film
    pools = default_pools(num_cpus=2, num_gpus=0)
    return make_plan(film, (able,), numerics(pools), container="mp4", stills=stills)


def frames_of(made: dict[str, Any], keys: tuple[str, ...]) -> np.ndarray:
    return np.stack([f for key in keys for f in read_lossless(as_bytes(made[key]))])


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- streams


@pytest.mark.usefixtures("one_thread")
@torch.no_grad()
def test_pieces_of_a_stream_are_the_whole_decode_bit_for_bit(able: Checkpoint) -> None:
    vae = load_component(able.folder, "vae", dtype="float32", device="cpu")
    latents = torch.randn(1, 16, 48, 6, 8, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    inverse = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    whole = decode.as_uint8(vae.decode(latents / inverse + mean).sample[0]).numpy()
    assert torch.equal(wan.decode_latents(vae, latents), vae.decode(latents / inverse + mean).sample)

    halo = able.card.halo_latents
    artifact, rule = save({"latents": latents}), able.card.rule

    def piece(stage: decode.Stage, first: int, end: int, halo: int) -> np.ndarray:
        begins = max(0, first - halo)
        num_frames = rule.num_frames(end) - rule.num_frames(first)
        request = Decode("wan", ((begins, end - begins),), first - begins, begins == 0, 0, num_frames)
        return np.stack(list(read_lossless(stage.run(request, [artifact], Progress()).artifact)))

    cuts = [(0, 17), (17, 45), (45, 48)]
    warm = decode.Stage(able.folder)
    for name, stages in (("one replica", [warm] * 3), ("three", [decode.Stage(able.folder) for _ in cuts])):
        parts = [piece(stage, *cut, halo) for stage, cut in zip(stages, cuts, strict=True)]
        assert np.array_equal(np.concatenate(parts), whole), name
    short = piece(decode.Stage(able.folder), *cuts[-1], 2)
    assert not np.array_equal(short, whole[-len(short) :])  # so the halo is needed


def test_a_stream_is_known_by_its_latents_not_by_its_length(able: Checkpoint) -> None:
    stage = decode.Stage(able.folder)
    one, other = (torch.randn(1, 16, 4, 6, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    start = Decode("wan", ((0, 2),), 0, True, 0, 5)
    on = Decode("wan", ((0, 4),), 2, True, 0, 8)
    stage.run(start, [save({"latents": one})], Progress())
    mixed = stage.run(on, [save({"latents": other})], Progress()).artifact
    fresh = decode.Stage(able.folder).run(on, [save({"latents": other})], Progress()).artifact
    assert mixed == fresh


def test_the_halo_of_real_wan_is_what_was_measured() -> None:
    from farm.cards import wan_halo_latents

    assert wan_halo_latents({}) == 39  # 37.5 rounded up, and one


# -- context


@pytest.mark.parametrize("context", ["latents", "frames", "last_frame", "none"])
def test_every_chunk_begins_with_the_end_of_the_one_before(context: str, able: Checkpoint, tmp_path: Path) -> None:
    overlap = {"latents": 5, "frames": 5, "last_frame": 1, "none": 0}[context]
    how = {"mode": "extend", "chunk_frames": 9, "context": context, "overlap_frames": overlap}
    shots = [{"id": "a", "prompt": "a red ball", "frames": 22, "continuity": how}]
    plan = plan_of(able, tmp_path, shots=shots)
    made = run_plan(plan)
    video = frames_of(made, plan.shots[0].frames)
    assert len(video) == 22
    denoised = [t for t in plan.tasks.values() if isinstance(t.request, Denoise)]
    assert [t.request.seed for t in denoised] == [3 + k for k in range(len(denoised))]
    encoded = [t for t in plan.tasks.values() if isinstance(t.request, EncodeFrames)]
    assert len(encoded) == (len(denoised) - 1 if context in ("frames", "last_frame") else 0)
    known = {"latents": 2, "frames": 2, "last_frame": 1, "none": 0}[context]
    for before, task in pairwise(denoised):
        now, then = load(made[task.key])["latents"], load(made[before.key])["latents"]
        count = task.request.context_latents
        assert count >= known
        if context == "latents":
            assert torch.equal(now[:, :, :count], then[:, :, -count:])


def test_frames_as_context_are_the_frames_that_were_delivered(able: Checkpoint, tmp_path: Path) -> None:
    how = {"mode": "extend", "chunk_frames": 9, "context": "frames", "overlap_frames": 5}
    plan = plan_of(able, tmp_path, shots=[{"id": "a", "prompt": "a ball", "frames": 13, "continuity": how}])
    made = run_plan(plan)
    first = frames_of(made, plan.shots[0].frames[:1])
    vae = load_component(able.folder, "vae", dtype="float32", device="cpu")
    with torch.no_grad():
        video = torch.from_numpy(first[-5:]).permute(3, 0, 1, 2)[None] / 255.0 * 2 - 1
        expected = wan.encode_video(vae, video)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, EncodeFrames))
    assert torch.allclose(load(made[task.key])["latents"], expected, atol=1e-5)


def test_a_prompt_in_force_at_the_first_new_frame_serves_the_chunk(able: Checkpoint, tmp_path: Path) -> None:
    schedule = [{"at": 0, "prompt": "a red ball"}, {"at": 1.2, "prompt": "a blue cube"}]
    plan = plan_of(able, tmp_path, shots=[{"id": "a", "prompts": schedule, "frames": 21}], style="at night")
    said = []
    for task in plan.tasks.values():
        if isinstance(task.request, Denoise):
            text = plan.tasks[task.inputs[0]].request
            assert isinstance(text, EncodeText)
            said.append(text.prompt)
    # the second prompt holds from frame 10; chunks add frames 0-8, 9-12, 13-16, 17-20
    assert said == ["a red ball at night"] * 2 + ["a blue cube at night"] * 2


# -- blend


@given(longest=st.integers(2, 9), overlap=st.integers(1, 8), num_frames=st.integers(1, 300))
def test_weights_of_slices_add_up_to_one(longest: int, overlap: int, num_frames: int) -> None:
    assume(overlap < longest)
    rule = FrameRule(4, 1)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=rule.num_frames(longest), overlap_frames=rule.num_frames(overlap),
        rule=rule, context="latents",
    )  # fmt: skip
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
    rule = FrameRule(4, 1)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=rule.num_frames(longest), overlap_frames=rule.num_frames(overlap),
        rule=rule, context="latents",
    )  # fmt: skip
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


# -- going on


def test_a_shot_that_goes_on_is_the_stream_of_the_other(able: Checkpoint, tmp_path: Path) -> None:
    """One take of 30 frames, and the same cut into two shots: the same chunks are asked for."""
    whole = plan_of(able, tmp_path, shots=[{"id": "a", "prompt": "a red ball", "frames": 29, "seed": 5}])
    two = plan_of(
        able, tmp_path, shots=[
            {"id": "b", "prompt": "a red ball", "frames": 16, "continue_from": "a", "seed": 7},
            {"id": "a", "prompt": "a red ball", "frames": 13, "seed": 5},
        ],
    )  # fmt: skip
    long = [t for t in whole.tasks.values() if isinstance(t.request, Denoise)]
    parts = [t for t in two.tasks.values() if isinstance(t.request, Denoise)]
    assert [(t.request.latent_shape, t.request.context_latents) for t in long] == [
        (t.request.latent_shape, t.request.context_latents) for t in parts
    ]
    assert [t.request.seed for t in parts] == [5, 6, 7, 8, 9, 10]
    assert parts[0].key == long[0].key and parts[1].key == long[1].key
    made, again = run_plan(whole), run_plan(two)
    joined = np.concatenate([frames_of(again, two.shots[1].frames), frames_of(again, two.shots[0].frames)])
    assert len(joined) == 29
    assert np.array_equal(joined[:13], frames_of(made, whole.shots[0].frames)[:13])


def test_going_on_inside_a_latent_frame_shows_no_frame_twice(able: Checkpoint, tmp_path: Path) -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 10},
        {"id": "b", "prompt": "a cube", "frames": 2, "continue_from": "a"},
        {"id": "c", "prompt": "a cube", "frames": 9, "continue_from": "b"},
    ]  # fmt: skip
    plan = plan_of(able, tmp_path, shots=shots)
    made = run_plan(plan)
    stream = torch.cat(
        [load(made[t.key])["latents"][:, :, t.request.context_latents :]
         for t in plan.tasks.values() if isinstance(t.request, Denoise)], dim=2,
    )  # fmt: skip
    vae = load_component(able.folder, "vae", dtype="float32", device="cpu")
    with torch.no_grad():
        whole = decode.as_uint8(wan.decode_latents(vae, stream)[0]).numpy()
    joined = np.concatenate([frames_of(made, shot.frames) for shot in plan.shots])
    assert np.array_equal(joined, whole[:21])
    assert sum(isinstance(t.request, Denoise) for t in plan.tasks.values()) == 4  # b needs none of its own


# -- pictures


def write_picture(path: Path, *, size: tuple[int, int] = (64, 48), seed: int = 0) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.mark.usefixtures("one_thread")
def test_a_picture_that_moves_equals_the_stock_pipeline(able: Checkpoint, tmp_path: Path) -> None:
    write_picture(tmp_path / "hill.png", size=(128, 96))
    shots = [{"id": "a", "prompt": "a red ball", "frames": 9, "image": "hill.png"}]
    plan = plan_of(able, tmp_path, shots=shots, steps=3)
    made = run_plan(plan, dict.fromkeys(plan.sources, tmp_path / "hill.png"))
    pipe = WanImageToVideoPipeline.from_pretrained(able.folder, dtype=torch.float32, expand_timesteps=True)
    for module in (pipe.text_encoder, pipe.transformer, pipe.vae):
        own_memory(module)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        image=Image.open(tmp_path / "hill.png"), prompt="a red ball", height=48, width=64, num_frames=9,
        num_inference_steps=3, guidance_scale=3.0, generator=torch.Generator("cpu").manual_seed(3),
        output_type="latent",
    ).frames  # fmt: skip
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    assert torch.equal(load(made[task.key])["latents"], stock)


def test_the_job_and_the_keys_know_a_picture_by_its_bytes(able: Checkpoint, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    plans = [
        plan_of(able, tmp_path, shots=[{"id": "a", "prompt": "x", "frames": 9, "image": f}]) for f in ("a.png", "b.png")
    ]
    assert plans[0].film == plans[1].film
    write_picture(tmp_path / "b.png", seed=1)
    other = plan_of(able, tmp_path, shots=[{"id": "a", "prompt": "x", "frames": 9, "image": "b.png"}])
    assert other.film != plans[0].film


@pytest.mark.parametrize(("fit", "corner"), [("cover", 255), ("contain", 0), ("stretch", 255)])
def test_pictures_of_other_shapes_are_fitted(fit: str, corner: int) -> None:
    from pipelines.encode import fit_picture

    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "white").save(buffer, "PNG")
    frame = fit_picture(buffer.getvalue(), Known(64, 48), fit)
    assert frame.shape == (48, 64, 3)
    assert frame[0, 0].tolist() == [corner] * 3


# -- transitions


def film_frames(data: bytes | Path) -> np.ndarray:
    import av

    with av.open(str(data)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


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
