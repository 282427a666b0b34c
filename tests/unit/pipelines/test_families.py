"""Parity: one chunk through the farm's stages equals the stock diffusers pipeline of every family and mode.

Latents are equal to the bit and frames in uint8, on the CPU in float32, with the same checkpoint, seed and settings.
"""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families as tiny
import torch
import yaml
from family_cases import (
    CASES,
    SEED,
    board_of,
    both_kinds,
    in_our_layout,
    latents_behind,
    run,
    stock_call,
    stock_pipeline,
)
from in_process import plan_of, resolve_board, run_plan
from PIL import Image
from safetensors.torch import load, save

from farm.errors import InputError
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import make_plan
from farm.pools.pools import default_pools, numerics
from farm.task import Denoise
from pipelines import denoise
from pipelines.frames import read_lossless
from pipelines.stage import Progress

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # EulerDiscreteScheduler
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi
]
CONTINUED = [
    ("wan, image, clip", "last_frame", 1), ("wan, image, timesteps per token", "last_frame", 1),
    ("vace, image", "last_frame", 1), ("vace, reference", "frames", 5), ("ltx, conditions, text", "frames", 9),
    ("ltx, image", "last_frame", 1), ("hunyuan, image, concatenated", "last_frame", 1),
    ("hunyuan, image, token replaced", "last_frame", 1), ("hunyuan 1.5, image", "last_frame", 1),
    ("cogvideox, image", "last_frame", 1), ("cogvideox 1.5, image, dpm", "last_frame", 1),
    ("svd, image", "last_frame", 1),
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_chunk_equals_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board, given, paths = board_of(case, tmp_path)
    plan, ours = run(board, folder, paths)
    (key,) = plan.shots[0].frames

    pipe = stock_pipeline(case, folder)
    expected, expected_frames = both_kinds(pipe, stock_call(case, pipe, board, **given), SEED)
    latents, frames = latents_behind(plan, ours, key), np.stack(list(read_lossless(ours[key])))
    expected = in_our_layout(expected, latents, case.layout)
    assert torch.isfinite(latents).all()
    assert torch.equal(latents[:, :, -expected.shape[2] :], expected)
    assert len(frames) == case.num_frames
    assert frames.std() > 1
    assert np.array_equal(frames, expected_frames)


@pytest.mark.parametrize(("name", "context", "overlap"), CONTINUED)
def test_a_chunk_that_goes_on_equals_the_stock_pipeline(name: str, context: str, overlap: int, tmp_path: Path) -> None:
    """The stock pipeline is given the last frames of the chunk before, and the seed of the next."""
    torch.set_num_threads(1)
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board, given, paths = board_of(case, tmp_path)
    board["shots"][0]["frames"] = 2 * case.num_frames - overlap
    board["continuity"] = {
        "mode": "extend", "chunk_frames": case.num_frames, "overlap_frames": overlap, "context": context
    }  # fmt: skip
    plan, ours = run(board, folder, paths)
    before, after = (np.stack(list(read_lossless(ours[k]))) for k in plan.shots[0].frames)

    pipe = stock_pipeline(case, folder)
    known = [Image.fromarray(f) for f in before[-overlap:]]
    call = stock_call(case, pipe, board, first=known, references=given["references"])
    expected, expected_frames = both_kinds(pipe, call, SEED + 1)
    latents = latents_behind(plan, ours, plan.shots[0].frames[1])
    expected = in_our_layout(expected, latents, case.layout)
    assert torch.equal(latents[:, :, -expected.shape[2] :], expected)
    assert np.array_equal(after, expected_frames[overlap:])


def test_a_picture_in_between_falls_into_its_chunk(tmp_path: Path) -> None:
    """Frame 20 of the shot is frame 12 of its second chunk, which begins with nine frames of the first."""
    torch.set_num_threads(1)
    pictures = CASES["ltx, conditions, pictures in between"]
    case = replace(pictures, shot={"keyframes": [{"at": 20 / 25, "image": "d.png"}]})
    folder = tiny.save(case.make, tmp_path / "model")
    board, given, paths = board_of(case, tmp_path)
    board["shots"][0]["frames"] = 25
    board["continuity"] = {"mode": "extend", "chunk_frames": 17, "overlap_frames": 9, "context": "frames"}
    plan, ours = run(board, folder, paths)
    before, after = (np.stack(list(read_lossless(ours[k]))) for k in plan.shots[0].frames)
    pipe = stock_pipeline(case, folder)
    ((_, picture),) = given["between"]
    call = stock_call(case, pipe, board, first=[Image.fromarray(f) for f in before[-9:]], between=[(12, picture)])
    assert np.array_equal(after, both_kinds(pipe, call, SEED + 1)[1][9:])


@pytest.mark.parametrize(
    ("name", "at", "continuity", "told"),
    [
        ("ltx, text", [0.2], {}, r"keyframes must not be there: .* takes .*LTXConditionPipeline takes it"),
        ("ltx, conditions, text", [0.68], {}, r"keyframes\[0\]\.at must be above 0, at most 0\.64"),
        ("ltx, conditions, text", [0.2, 0.21], {}, r"keyframes\[1\]\.at must be above 0"),
        ("ltx, conditions, text", [0.2], {"mode": "blend", "chunk_frames": 9, "overlap_frames": 1}, "in mode blend"),
    ],
)
def test_pictures_in_between_that_cannot_be(
    name: str, at: list[float], continuity: dict[str, Any], told: str, tmp_path: Path
) -> None:
    folder = tiny.save(CASES[name].make, tmp_path / "model")
    board, _, _ = board_of(replace(CASES[name], num_frames=17), tmp_path)
    Image.new("RGB", CASES[name].size).save(tmp_path / "k.png")
    board["shots"][0]["keyframes"] = [{"at": t, "image": str(tmp_path / "k.png")} for t in at]
    board |= {"continuity": continuity} if continuity else {}
    with pytest.raises(InputError, match=told):
        resolve_board(board, find_checkpoint(str(folder), beside=tmp_path))


def test_history_in_latents_equals_skyreels_own_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its noise comes from one generator, ours from a seed for each chunk; that on its history from the global seed."""
    from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_diffusion_forcing as stock

    torch.set_num_threads(1)
    case = CASES["skyreels, text"]
    folder = tiny.save(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    board["shots"][0]["frames"] = 13
    board["continuity"] = {"mode": "extend", "chunk_frames": 9, "overlap_frames": 5, "context": "latents"}
    plan, ours = run(board, folder, {})
    parts = [latents_behind(plan, ours, k) for k in plan.shots[0].frames]

    pipe, call = stock_pipeline(case, folder), {"overlap_history": 5, "addnoise_condition": 20}
    seeds = iter([SEED, SEED + 1] * 2)

    def draw(shape: Any, **how: Any) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(next(seeds)))

    monkeypatch.setattr(stock, "randn_tensor", draw)
    made = []
    for kind in ("latent", "pil"):
        torch.manual_seed(SEED + 1)
        made.append(pipe(**stock_call(case, pipe, board) | call | {"num_frames": 13}, output_type=kind).frames)
    assert torch.equal(torch.cat([parts[0], parts[1][:, :, 2:]], dim=2), made[0])
    frames = [f for k in plan.shots[0].frames for f in read_lossless(ours[k])]
    assert np.array_equal(np.stack(frames), np.stack([np.asarray(f) for f in made[1][0]]))


LONG = {  # case: chunk and overlap in frames, frames of the shot
    "wan, text": (9, 5, 16), "wan, image, timesteps per token": (9, 5, 16), "wan, image, clip": (9, 5, 16),
    "wan, image, two experts": (9, 5, 16), "vace, text": (9, 5, 16), "vace, reference": (9, 5, 16),
    "ltx, text": (17, 9, 32), "ltx, conditions, image": (17, 9, 32), "hunyuan, text": (9, 5, 16),
    "hunyuan, image, concatenated": (9, 1, 24), "hunyuan, image, token replaced": (9, 1, 24),
    "hunyuan 1.5, text": (9, 5, 16), "hunyuan 1.5, image": (9, 1, 24), "cogvideox, text": (9, 5, 16),
    "cogvideox, image": (9, 1, 24), "cogvideox 1.5, image, dpm": (9, 1, 24), "skyreels, text": (9, 5, 16),
    "svd, image": (9, 1, 24), "mochi, text": (13, 7, 24),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["extend", "blend"])
@pytest.mark.parametrize("name", LONG)
def test_three_chunks_have_the_frames_that_were_asked_for(name: str, mode: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case, (chunk, overlap, num_frames) = CASES[name], LONG[name]
    folder = tiny.save(case.make, tmp_path / "model")
    card = find_checkpoint(str(folder), beside=tmp_path).card
    board, _, paths = board_of(case, tmp_path)
    board["shots"][0]["frames"], board["steps"] = num_frames, 2
    board["continuity"] = {"mode": mode, "chunk_frames": chunk, "overlap_frames": overlap}
    if (mode == "extend" and not card.contexts) or (mode == "blend" and (not card.blends or "references" in case.shot)):
        with pytest.raises(InputError, match=r"must be none for|must be extend|must not be there in mode blend"):
            plan_of(board, folder)
        return
    plan, made = run(board, folder, paths)
    assert sum(isinstance(t.request, Denoise) for t in plan.tasks.values()) == (3 if mode == "extend" else 1)
    frames = [f for k in plan.shots[0].frames for f in read_lossless(made[k])]
    assert len(frames) == num_frames
    assert {f.shape for f in frames} == {(case.size[1], case.size[0], 3)}


def test_another_model_goes_on_from_the_first_chunk(tmp_path: Path) -> None:
    """`continuity.model`: a model of text begins, one of pictures goes on from its last frame."""
    torch.set_num_threads(1)
    text, image = CASES["cogvideox, text"], CASES["cogvideox, image"]
    first, second = (tiny.save(c.make, tmp_path / name) for c, name in ((text, "text"), (image, "image")))
    board, _, _ = board_of(text, tmp_path)
    board["shots"][0]["frames"] = 24
    board["continuity"] = {"chunk_frames": 9, "model": str(second)}
    models = [find_checkpoint(str(f), beside=tmp_path) for f in (first, second)]
    draft = parse_storyboard(yaml.safe_dump(board).encode(), file="board.yaml")
    resolved = resolve(draft, models[0], others={str(second): models[1]})
    pools = numerics(default_pools(num_cpus=2, num_gpus=0))
    plan = make_plan(resolved.film, resolved.models, pools, container="mp4", stills=False)
    by_model = [t.model for t in plan.tasks.values() if isinstance(t.request, Denoise)]
    assert by_model == [str(first), str(second), str(second)]
    made = run_plan(plan)
    before, after, last = (np.stack(list(read_lossless(made[k]))) for k in plan.shots[0].frames)
    assert [len(before), len(after), len(last)] == [9, 8, 7]

    pipe = stock_pipeline(image, second)
    call = stock_call(image, pipe, board, first=[Image.fromarray(before[-1])])
    assert np.array_equal(after, both_kinds(pipe, call, SEED + 1)[1][1:])
    blend = yaml.safe_dump(board | {"continuity": board["continuity"] | {"mode": "blend", "overlap_frames": 5}})
    with pytest.raises(InputError, match=r"continuity\.model must stand beside mode extend"):
        resolve(parse_storyboard(blend.encode(), file="b.yaml"), models[0], others={str(second): models[1]})


def test_each_of_two_models_has_its_own_guidance_unless_one_is_asked_for(tmp_path: Path) -> None:
    names = ("wan, text", "wan, image, two experts")
    first, second = (tiny.save(CASES[name].make, tmp_path / name) for name in names)
    models = [find_checkpoint(str(f), beside=tmp_path) for f in (first, second)]
    board: dict[str, Any] = {
        "size": "64x48", "continuity": {"chunk_frames": 9, "context": "last_frame", "model": str(second)},
        "shots": [{"id": "a", "prompt": "a ball", "frames": 17}],
    }  # fmt: skip
    for asked, told in ((None, [(5.0, 5.0), (3.5, 3.5)]), ({"high": 2.0, "low": 1.5}, []), (2.0, [(2.0, 2.0)] * 2)):
        draft = parse_storyboard(yaml.safe_dump(board | ({"guidance": asked} if asked else {})).encode(), file="b.yaml")
        if not told:  # a pair, of which the first model has one
            with pytest.raises(InputError, match="one number"):
                resolve(draft, models[0], others={str(second): models[1]})
            continue
        resolved = resolve(draft, models[0], others={str(second): models[1]})
        pools = numerics(default_pools(num_cpus=2, num_gpus=0))
        plan = make_plan(resolved.film, resolved.models, pools, container="mp4", stills=False)
        requests = [t.request for t in plan.tasks.values() if isinstance(t.request, Denoise)]
        assert [(r.guidance, r.guidance_low) for r in requests] == told


@pytest.mark.parametrize("name", [n for n in LONG if n != "wan, image, two experts"])
def test_a_stage_opens_no_files_but_those_of_its_components(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    plan = plan_of(board, folder)
    kinds = {(t.stage, tuple(c for c, _ in t.components)) for t in plan.tasks.values() if t.components}
    assert {stage for stage, _ in kinds} >= {"denoise", "decode"}
    for n, (stage, components) in enumerate(sorted(kinds)):
        alone = tmp_path / f"alone{n}"
        shutil.copytree(folder, alone, ignore=lambda at, names, own=components: [
            x for x in names if Path(at) == folder and x not in (*own, "model_index.json")
        ])  # fmt: skip
        loaded = importlib.import_module(f"pipelines.{stage}").Stage(str(alone), components)
        held = {"vae": loaded.vae} if stage == "decode" else loaded.components
        assert set(held) == set(components)


def test_weights_of_the_autoencoder_are_in_no_key_of_denoising(tmp_path: Path) -> None:
    case = CASES["ltx, text"]
    checkpoint = find_checkpoint(str(tiny.save(case.make, tmp_path / "model")), beside=tmp_path)
    other = replace(checkpoint, fingerprints={**checkpoint.fingerprints, "vae": "0" * 64})
    board, _, _ = board_of(case, tmp_path)
    pools = numerics(default_pools(num_cpus=2, num_gpus=0))
    plans = [make_plan(resolve_board(board, m).film, (m,), pools, container="mp4", stills=False)
             for m in (checkpoint, other)]  # fmt: skip
    shared = plans[0].tasks.keys() & plans[1].tasks.keys()
    assert {plans[0].tasks[k].stage for k in shared} == {"encode", "denoise"}
    assert {t.stage for k, t in plans[1].tasks.items() if k not in shared} == {"decode", "assemble"}


RESUMED = ["cogvideox, text, dpm", "cogvideox 1.5, image, dpm", "ltx, conditions, first and last", "hunyuan 1.5, text",
           "skyreels, text", "svd, image", "mochi, text", "wan, image, two experts"]  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_another_replica_goes_on_from_every_step_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """Whatever a family carries from step to step, draws at a step or keeps in its scheduler is in the checkpoint."""
    torch.set_num_threads(1)
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board, _, paths = board_of(case, tmp_path)
    plan, made = run(board | {"steps": 4}, folder, paths)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    inputs, kept = [made[k] for k in task.inputs], list[bytes]()
    progress = Progress(keep=lambda step, data, is_last: kept.append(data), keep_every_steps=1)
    components = [c for c, _ in task.components]
    denoise.Stage(str(folder), components).run(task.request, inputs, progress)
    assert len(kept) == 3
    for data in kept:
        again = denoise.Stage(str(folder), components).run(task.request, inputs, Progress(saved=data))
        assert again.artifact == made[task.key]


@pytest.mark.parametrize("name", [n for n in LONG if n.split(",")[0] in ("skyreels", "hunyuan 1.5", "ltx", "vace")])
def test_a_helper_that_has_done_nothing_yet_predicts_the_owners_bits(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board, _, paths = board_of(case, tmp_path)
    plan, made = run(board | {"steps": 4}, folder, paths)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    inputs, components = [made[k] for k in task.inputs], [c for c, _ in task.components]
    owner, helper = (denoise.Stage(str(folder), components) for _ in range(2))
    predicts, _ = owner.predicts(task.request, inputs)
    helpers, _ = helper.predicts(task.request, inputs)
    latents = torch.randn(task.request.latent_shape, generator=torch.Generator().manual_seed(1))
    for t in owner.components["scheduler"].timesteps:
        with torch.no_grad():
            expected = predicts[0](latents, t)
        told = load(helper.assist(helpers, save({"0": latents, "t": t.reshape(1)})))["0"]
        assert torch.equal(told, expected)


def test_a_shot_ends_on_its_last_image_or_is_refused(tmp_path: Path) -> None:
    case = CASES["vace, first and last image, reference"]
    folder = tiny.save(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    board["shots"][0]["frames"] = 8
    with pytest.raises(InputError, match=r"got 8 frames; try frames: 9"):
        plan_of(board, folder)
    board["shots"][0]["frames"] = 1
    with pytest.raises(InputError, match=r"must leave room between the picture and last_image"):
        plan_of(board, folder)
