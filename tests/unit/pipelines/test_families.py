"""Parity: one chunk through the farm's stages equals the stock diffusers pipeline of every family and mode.

Latents are equal to the bit and frames in uint8, on the CPU in float32, with the same checkpoint, seed and settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_families as tiny
import torch
from in_process import plan_of, run_plan
from PIL import Image
from safetensors.torch import load

from pipelines.frames import read_lossless
from pipelines.load import own_memory

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


def picture(folder: Path, name: str, size: tuple[int, int], seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return str(folder / name)


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
    "ltx, conditions, text": Case(partial(tiny.ltx, "LTXConditionPipeline"), **CONDITION),
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
    "hunyuan 1.5, text, no guidance": Case(
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


def stock_pipeline(case: Case, folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    if case.stock:
        pipe = getattr(diffusers, case.stock)(**pipe.components)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            own_memory(module)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock_call(case: Case, pipe: Any, shot: dict[str, Any], board: dict[str, Any]) -> Call:
    """The arguments of the stock pipeline that say what the storyboard says."""
    name, guidance = type(pipe).__name__, board["guidance"]
    call: Call = {"num_frames": case.num_frames + case.extra_frames, "num_inference_steps": board["steps"]} | case.call
    if name != "HunyuanVideo15ImageToVideoPipeline":
        call |= {"width": case.size[0], "height": case.size[1]}
    if "prompt" in shot:
        call["prompt"] = shot["prompt"]
    if case.is_guided:
        call["negative_prompt"] = shot.get("negative_prompt", NEGATIVE)
    if "HunyuanVideo15" in name:
        pipe.guider = pipe.guider.new(guidance_scale=guidance)
    elif "StableVideo" in name:
        call |= {"min_guidance_scale": 1.0, "max_guidance_scale": guidance}
    elif isinstance(guidance, dict):
        call |= {"guidance_scale": guidance["high"], "guidance_scale_2": guidance["low"]}
    else:
        call["guidance_scale"] = guidance
    opened = {k: Image.open(shot[k]).convert("RGB") for k in ("image", "last_image") if k in shot}
    if "VACE" in name:
        size, first, last = case.size, opened.get("image"), opened.get("last_image")
        if opened:
            gray, known, unknown = (
                Image.new("RGB", size, (128,) * 3),
                Image.new("L", size, 0),
                Image.new("L", size, 255),
            )
            call["video"] = [first or gray, *[gray] * (case.num_frames - 2), last or gray]
            call["mask"] = [known if first else unknown, *[unknown] * (case.num_frames - 2), known if last else unknown]
        if "references" in shot:
            call["reference_images"] = [Image.open(r).convert("RGB") for r in shot["references"]]
    elif "Condition" in name and opened:
        condition = diffusers.pipelines.ltx.pipeline_ltx_condition.LTXVideoCondition
        at = {"image": 0, "last_image": case.num_frames - 1}
        call["conditions"] = [condition(image=v, frame_index=at[k]) for k, v in opened.items()]
    else:
        call |= opened
    return call


def in_our_layout(latents: torch.Tensor, like: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "packed":
        return latents.transpose(1, 2).reshape(like.shape)
    return latents.transpose(1, 2) if layout == "BFCHW" else latents


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' EulerDiscreteScheduler
@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # diffusers' Mochi
@pytest.mark.parametrize("name", CASES)
def test_one_chunk_equals_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    folder = tiny.save(case.make, tmp_path / "model")
    board = {"size": "{}x{}".format(*case.size), "steps": 3, "seed": SEED, "guidance": 4.0} | case.board
    if case.is_guided:
        board["negative_prompt"] = NEGATIVE
    shot: dict[str, Any] = {"id": "one", "frames": case.num_frames, "prompt": PROMPT} | case.shot
    if "fps" in case.call or "frame_rate" in case.call:
        board["fps"] = case.call.get("fps") or case.call["frame_rate"]
    for i, key in enumerate(("image", "last_image", "references")):
        if key in shot:
            made = picture(tmp_path, f"{key}.png", case.size, i)
            shot[key] = [made] if key == "references" else made
    if tiny.svd is case.make:
        del shot["prompt"]
    plan = plan_of(board | {"shots": [shot]}, folder)
    images = {key: Path(shot[k][0] if k == "references" else shot[k]) for k in ("image", "last_image", "references")
              if k in shot for key in keys_of(plan, shot[k][0] if k == "references" else shot[k])}  # fmt: skip
    ours = run_plan(plan, images)

    pipe = stock_pipeline(case, folder)
    call = stock_call(case, pipe, shot, board)
    stock = [pipe(**call, generator=torch.Generator("cpu").manual_seed(SEED), output_type=k).frames
             for k in ("latent", "pil")]  # fmt: skip
    (latents_key,) = plan.tasks[plan.shots[0].frames[0]].inputs
    latents = load(ours[latents_key])["latents"]
    expected = in_our_layout(stock[0], latents, case.layout)
    assert torch.isfinite(latents).all()
    assert torch.equal(latents[:, :, -expected.shape[2] :], expected), (latents - expected).abs().max()
    frames = np.stack(list(read_lossless(ours[plan.shots[0].frames[0]])))
    assert len(frames) == case.num_frames
    assert frames.std() > 1
    assert np.array_equal(frames, np.stack([np.asarray(f) for f in stock[1][0]]))


def keys_of(plan: Any, path: str) -> list[str]:
    """Under which keys a plan knows a picture."""
    import hashlib

    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return [k for k, t in plan.sources.items() if t.request.sha256 == digest]
