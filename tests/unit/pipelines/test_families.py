"""Parity: one chunk through the farm's stages equals the stock diffusers pipeline of every family and mode.

Latents are equal to the bit and frames in uint8, on the CPU in float32, with the same checkpoint, seed and settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_families as tiny
import torch
import yaml
from diffusers.pipelines.ltx import pipeline_ltx_condition
from in_process import plan_of, run_plan
from PIL import Image
from safetensors.torch import load

from farm.checkpoint import find_checkpoint
from farm.errors import InputError
from farm.plan import Plan, make_plan
from farm.pools import default_pools, numerics
from farm.resolve import resolve
from farm.storyboard import parse_storyboard
from farm.task import Denoise
from pipelines.frames import read_lossless
from pipelines.load import own_memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # EulerDiscreteScheduler
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi
]
PROMPT, NEGATIVE, SEED = "a red ball rolls over grass at sunset", "night over sand", 11
Call = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A checkpoint, what the storyboard says of it, and how the stock pipeline is called for the same."""

    make: Callable[[], Any]
    shot: dict[str, Any] = field(default_factory=dict)
    board: dict[str, Any] = field(default_factory=dict)
    call: Call = field(default_factory=dict)
    stock: str = ""  # another pipeline on the same components
    size: tuple[int, int] = (64, 48)
    num_frames: int = 9
    extra_frames: int = 0  # that the stock pipeline generates and does not show
    layout: str = "BCFHW"  # of the stock pipeline's latents
    is_guided: bool = True


IMAGE, LAST, REFERENCE = {"image": "a.png"}, {"last_image": "b.png"}, {"references": ["c.png"]}
LTX = {"size": (96, 64), "layout": "packed", "call": {"frame_rate": 25, "max_sequence_length": 128}}
CONDITION = {"size": (96, 64), "call": {"frame_rate": 25, "max_sequence_length": 256}}
COG = {"layout": "BFCHW", "call": {"max_sequence_length": 16}}
wan, i2v = partial(tiny.wan, "WanPipeline"), partial(tiny.wan, "WanImageToVideoPipeline")
vace, per_token = partial(tiny.wan, "WanVACEPipeline"), {"expand_timesteps": True}
clip = {"transformer": {"image_dim": 8, "added_kv_proj_dim": 24}}
CASES = {
    "wan, text": Case(wan),
    "wan, text, euler, no guidance": Case(partial(wan, scheduler=tiny.flow), board={"guidance": 1.0}),
    "wan, image, clip": Case(partial(i2v, **clip), IMAGE),
    "wan, first and last image": Case(
        partial(i2v, transformer=clip["transformer"] | {"pos_embed_seq_len": 10}), IMAGE | LAST
    ),
    "wan, image, two experts": Case(
        partial(i2v, boundary_ratio=0.9), IMAGE, {"guidance": {"high": 3.5, "low": 2.5}, "steps": 6}
    ),
    "wan, image, timesteps per token": Case(partial(i2v, **per_token), IMAGE),
    "vace, text": Case(vace),
    "vace, reference": Case(vace, REFERENCE),
    "vace, image": Case(vace, IMAGE),
    "vace, first and last image, reference": Case(vace, IMAGE | LAST | REFERENCE),
    "ltx, text": Case(partial(tiny.ltx, "LTXPipeline"), **LTX),
    "ltx, text, timestep of the decoder": Case(partial(tiny.ltx, "LTXPipeline", timestep_conditioning=True), **LTX),
    "ltx, image": Case(partial(tiny.ltx, "LTXPipeline"), IMAGE, stock="LTXImageToVideoPipeline", **LTX),
    "ltx, conditions, text": Case(partial(tiny.ltx, "LTXConditionPipeline"), num_frames=17, **CONDITION),
    "ltx, conditions, image": Case(partial(tiny.ltx, "LTXConditionPipeline"), IMAGE, **CONDITION),
    "ltx, conditions, first and last": Case(partial(tiny.ltx, "LTXConditionPipeline"), IMAGE | LAST, **CONDITION),
    "hunyuan, text": Case(partial(tiny.hunyuan, "HunyuanVideoPipeline"), is_guided=False),
    "hunyuan, image, concatenated": Case(
        partial(tiny.hunyuan, "HunyuanVideoImageToVideoPipeline", way="latent_concat"), IMAGE, is_guided=False,
        extra_frames=4,
    ),
    "hunyuan, image, token replaced": Case(
        partial(tiny.hunyuan, "HunyuanVideoImageToVideoPipeline", way="token_replace"), IMAGE, is_guided=False
    ),
    "hunyuan 1.5, text": Case(partial(tiny.hunyuan15, "HunyuanVideo15Pipeline"), size=(64, 64)),
    "hunyuan 1.5, text, another shape": Case(
        partial(tiny.hunyuan15, "HunyuanVideo15Pipeline"), board={"guidance": 2.0}, size=(96, 48)
    ),
    "hunyuan 1.5, image": Case(
        partial(tiny.hunyuan15, "HunyuanVideo15ImageToVideoPipeline"), IMAGE, size=(64, 64)
    ),
    "hunyuan 1.5, image, mean flow": Case(
        partial(tiny.hunyuan15, "HunyuanVideo15ImageToVideoPipeline", meanflow=True), IMAGE, size=(64, 64)
    ),
    "cogvideox, text": Case(partial(tiny.cogvideox, "CogVideoXPipeline"), **COG),
    "cogvideox, text, dpm": Case(
        partial(tiny.cogvideox, "CogVideoXPipeline", scheduler="CogVideoXDPMScheduler", rope=False), **COG
    ),
    "cogvideox, text, no guidance": Case(
        partial(tiny.cogvideox, "CogVideoXPipeline"), board={"guidance": 1.0}, **COG
    ),
    "cogvideox, image": Case(partial(tiny.cogvideox, "CogVideoXImageToVideoPipeline"), IMAGE, **COG),
    "cogvideox 1.5, text": Case(partial(tiny.cogvideox, "CogVideoXPipeline", pairs=True), **COG),
    "cogvideox 1.5, image, dpm": Case(
        partial(tiny.cogvideox, "CogVideoXImageToVideoPipeline", pairs=True, scheduler="CogVideoXDPMScheduler"),
        IMAGE, **COG
    ),
    "skyreels, text": Case(tiny.skyreels, call={"ar_step": 0, "base_num_frames": 9, "fps": 24}),
    "svd, image": Case(
        tiny.svd, IMAGE, {"guidance": 2.5}, layout="BFCHW", is_guided=False,
        call={"fps": 7, "decode_chunk_size": 8},
    ),
    "mochi, text": Case(tiny.mochi, num_frames=7),
    "mochi, text, zeros for an empty prompt": Case(
        partial(tiny.mochi, zeros=True), {"negative_prompt": ""}, num_frames=7
    ),
}  # fmt: skip

CONTINUED = [
    ("wan, image, clip", "last_frame", 1), ("wan, image, timesteps per token", "last_frame", 1),
    ("vace, image", "last_frame", 1), ("vace, reference", "frames", 5), ("ltx, conditions, text", "frames", 9),
    ("ltx, image", "last_frame", 1), ("hunyuan, image, concatenated", "last_frame", 1),
    ("hunyuan, image, token replaced", "last_frame", 1), ("hunyuan 1.5, image", "last_frame", 1),
    ("cogvideox, image", "last_frame", 1), ("cogvideox 1.5, image, dpm", "last_frame", 1),
    ("svd, image", "last_frame", 1),
]  # fmt: skip


def stock_pipeline(case: Case, folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    if case.stock:
        pipe = getattr(diffusers, case.stock)(**pipe.components)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            own_memory(module)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_call(
    case: Case, pipe: Any, board: dict[str, Any], *, first: Sequence[Any] = (), last: Any = None,
    references: Sequence[Any] = (),
) -> Call:  # fmt: skip
    """The arguments of the stock pipeline that say what the storyboard says.

    Args:
        first, last: pictures that the chunk begins with and ends on.
    """
    name, guidance = type(pipe).__name__, board["guidance"]
    call: Call = {"num_frames": case.num_frames + case.extra_frames, "num_inference_steps": board["steps"]} | case.call
    if name != "HunyuanVideo15ImageToVideoPipeline":
        call |= {"width": case.size[0], "height": case.size[1]}
    if "prompt" in board["shots"][0]:
        call["prompt"] = PROMPT
    if case.is_guided:
        call["negative_prompt"] = case.shot.get("negative_prompt", NEGATIVE)
    if "HunyuanVideo15" in name:
        pipe.guider = pipe.guider.new(guidance_scale=guidance)
    elif "StableVideo" in name:
        call |= {"min_guidance_scale": 1.0, "max_guidance_scale": guidance}
    elif isinstance(guidance, dict):
        call |= {"guidance_scale": guidance["high"], "guidance_scale_2": guidance["low"]}
    else:
        call["guidance_scale"] = guidance
    if "VACE" in name:
        gray = [Image.new("RGB", case.size, (128,) * 3)] * (case.num_frames - len(first) - (last is not None))
        if first or last:
            known, unknown = (Image.new("L", case.size, v) for v in (0, 255))
            call["video"] = [*first, *gray, *([last] if last else [])]
            call["mask"] = [known] * len(first) + [unknown] * len(gray) + [known] * (last is not None)
        return call | ({"reference_images": list(references)} if references else {})
    if "Condition" in name and first:
        condition = pipeline_ltx_condition.LTXVideoCondition
        held = {"image": first[0]} if len(first) == 1 else {"video": list(first)}
        call["conditions"] = [condition(**held, frame_index=0)]
        call["conditions"] += [condition(image=last, frame_index=case.num_frames - 1)] if last else []
        return call
    return call | ({"image": first[-1]} if first else {}) | ({"last_image": last} if last else {})


def in_our_layout(latents: torch.Tensor, like: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "packed":
        return latents.transpose(1, 2).reshape(like.shape)
    return latents.transpose(1, 2) if layout == "BFCHW" else latents


def board_of(case: Case, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Path]]:
    """The storyboard of one chunk; its pictures as the stock pipeline takes them, and by their SHA-256."""
    shot: dict[str, Any] = {"id": "one", "frames": case.num_frames, "prompt": PROMPT} | case.shot
    board = {"size": "{}x{}".format(*case.size), "steps": 3, "seed": SEED, "guidance": 4.0, "shots": [shot]}
    if case.is_guided:
        board["negative_prompt"] = NEGATIVE
    board |= case.board
    if fps := case.call.get("fps") or case.call.get("frame_rate"):
        board["fps"] = fps
    if case.make is tiny.svd:
        del shot["prompt"]
    given: dict[str, Any] = {"first": [], "last": None, "references": []}
    paths: dict[str, Path] = {}
    for seed, (key, name) in enumerate({"image": "first", "last_image": "last", "references": "references"}.items()):
        if key in shot:
            path = folder / f"{key}.png"
            pixels = np.random.default_rng(seed).integers(0, 256, (case.size[1], case.size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            paths[hashlib.sha256(path.read_bytes()).hexdigest()] = path
            shot[key] = [str(path)] if key == "references" else str(path)
            given[name] = Image.fromarray(pixels) if name == "last" else [Image.fromarray(pixels)]
    return board, given, paths


def run(board: dict[str, Any], folder: Path, paths: dict[str, Path]) -> tuple[Plan, dict[str, Any]]:
    plan = plan_of(board, folder)
    return plan, run_plan(plan, {k: paths[t.request.sha256] for k, t in plan.sources.items()})


def both_kinds(pipe: Any, call: Call, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """The stock pipeline's latents and frames."""
    made = [pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type=kind).frames
            for kind in ("latent", "pil")]  # fmt: skip
    return made[0], np.stack([np.asarray(f) for f in made[1][0]])


def latents_behind(plan: Plan, made: dict[str, Any], frames: str) -> torch.Tensor:
    """The latents that a decode task has read last."""
    return load(made[plan.tasks[frames].inputs[-1]])["latents"]


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
