"""Parity: one shot of one chunk through the farm's stages equals the stock diffusers pipeline, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from in_process import plan_of, run_plan
from safetensors.torch import load
from tiny_checkpoints import make_wan

from pipelines.frames import read_lossless
from pipelines.load import own_memory

LONG, SHORT = "a red ball rolls over grass at sunset", "the blue cube"
CASES = {
    "unipc": ({}, {}),
    "euler": ({"scheduler": "euler"}, {}),
    "no guidance": ({}, {"guidance": 1.0}),
    "negative prompt": ({}, {"negative_prompt": "night over sand", "guidance": 7.5}),
    "one step": ({"scheduler": "euler"}, {"steps": 1}),
    "two experts": ({"two_experts": True}, {"guidance": {"high": 4.0, "low": 3.0}, "steps": 8}),
    "two experts, one guidance": ({"two_experts": True, "scheduler": "euler"}, {"guidance": 3.5, "steps": 8}),
    "timesteps per token": ({"per_token": True}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_shots_equal_the_stock_pipeline(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    how, settings = CASES[case]
    folder = make_wan(tmp_path / "wan", **how)
    board: dict[str, Any] = {"size": "64x48", "fps": 16, "steps": 4, "seed": 11, "guidance": 5.0}
    board |= settings
    shots = [{"id": "long", "prompt": LONG, "frames": 9}, {"id": "short", "prompt": SHORT, "frames": 8, "seed": 3}]
    plan = plan_of(board | {"shots": shots}, folder)
    made = run_plan(plan)

    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    for module in (pipe.text_encoder, pipe.transformer, pipe.transformer_2, pipe.vae):
        if module is not None:
            own_memory(module)
    pipe.set_progress_bar_config(disable=True)
    guidance = board["guidance"]
    high, low = (guidance["high"], guidance["low"]) if isinstance(guidance, dict) else (guidance, None)
    for shot, planned, seed in zip(shots, plan.shots, (11, 3), strict=True):
        call = {
            "prompt": shot["prompt"], "negative_prompt": board.get("negative_prompt"), "width": 64, "height": 48,
            "num_frames": 9, "num_inference_steps": board["steps"], "guidance_scale": high, "guidance_scale_2": low,
        }  # fmt: skip
        stock = pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="latent").frames
        frames = pipe(**call, generator=torch.Generator("cpu").manual_seed(seed), output_type="pil").frames[0]
        (latents_key,) = plan.tasks[planned.frames[0]].inputs
        assert torch.equal(load(made[latents_key])["latents"], stock)
        ours = np.stack(list(read_lossless(made[planned.frames[0]])))
        assert len(ours) == shot["frames"]  # 9 generated, 8 kept in the second shot
        assert np.array_equal(ours, np.stack([np.asarray(f) for f in frames])[: shot["frames"]])
