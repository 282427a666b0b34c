"""Long shots through the stages in one process: streams of latents, pictures, context, transitions."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from continuity_case import frames_of, plan_of, write_picture
from diffusers import WanImageToVideoPipeline
from in_process import run_plan
from PIL import Image
from safetensors.torch import load, save

from farm.models.checkpoint import Checkpoint
from farm.task import Decode, Denoise, EncodeFrames, EncodeText, Known
from pipelines import decode
from pipelines.families import wan
from pipelines.frames import read_lossless
from pipelines.load import load_component, own_memory
from pipelines.stage import Progress

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
    from farm.models.cards.wan import wan_halo_latents

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


@pytest.mark.parametrize(("at", "num_old"), [(1.2, 2), (1.125, 1), (1.0, 1)])  # frames 10, 9 and 8
def test_a_prompt_in_force_at_the_first_new_frame_serves_the_chunk(
    at: float, num_old: int, able: Checkpoint, tmp_path: Path
) -> None:
    schedule = [{"at": 0, "prompt": "a red ball"}, {"at": at, "prompt": "a blue cube"}]
    plan = plan_of(able, tmp_path, shots=[{"id": "a", "prompts": schedule, "frames": 21}], style="at night")
    said = []
    for task in plan.tasks.values():
        if isinstance(task.request, Denoise):
            text = plan.tasks[task.inputs[0]].request
            assert isinstance(text, EncodeText)
            said.append(text.prompt)
    # chunks add frames 0-8, 9-12, 13-16, 17-20
    assert said == ["a red ball at night"] * num_old + ["a blue cube at night"] * (4 - num_old)


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
