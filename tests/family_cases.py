"""What each model family is tried with, and how the stock diffusers pipeline is called for the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import tiny_families as tiny
import torch
from diffusers.pipelines.ltx import pipeline_ltx_condition
from in_process import plan_of, run_plan
from PIL import Image
from safetensors.torch import load

from farm.plan.plan import Plan
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
    "ltx, conditions, pictures in between": Case(
        partial(tiny.ltx, "LTXConditionPipeline"), num_frames=17,
        shot=IMAGE | LAST | {"keyframes": [{"at": 5 / 25, "image": "d.png"}, {"at": 11 / 25, "image": "e.png"}]},
        **CONDITION,
    ),
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
    references: Sequence[Any] = (), between: Sequence[tuple[int, Any]] = (),
) -> Call:  # fmt: skip
    """The arguments of the stock pipeline that say what the storyboard says.

    Args:
        first, last, between: pictures that the chunk begins with and ends on, and those at other frames.
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
        call["conditions"] += [condition(image=image, frame_index=at) for at, image in between]
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
    if "keyframes" in shot:
        shot["keyframes"], given["between"] = [dict(k) for k in shot["keyframes"]], []
        for seed, key in enumerate(shot["keyframes"], start=10):
            path = folder / key["image"]
            pixels = np.random.default_rng(seed).integers(0, 256, (case.size[1], case.size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            paths[hashlib.sha256(path.read_bytes()).hexdigest()] = path
            key["image"] = str(path)
            given["between"].append((round(key["at"] * board["fps"]), Image.fromarray(pixels)))
    return board, given, paths


def run(
    board: dict[str, Any], folder: Path, paths: dict[str, Path], *, frames_only: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Plan and run a storyboard here, all of it or up to its frames."""
    plan = plan_of(board, folder)
    targets = [key for shot in plan.shots for key in shot.frames] if frames_only else None
    return plan, run_plan(plan, {k: paths[t.request.sha256] for k, t in plan.sources.items()}, targets=targets)


def both_kinds(pipe: Any, call: Call, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """The stock pipeline's latents and frames."""
    made = [pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type=kind).frames
            for kind in ("latent", "pil")]  # fmt: skip
    return made[0], np.stack([np.asarray(f) for f in made[1][0]])


def latents_behind(plan: Plan, made: dict[str, Any], frames: str) -> torch.Tensor:
    """The latents that a decode task has read last."""
    return load(made[plan.tasks[frames].inputs[-1]])["latents"]
