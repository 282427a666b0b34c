"""The stages on a real GPU, against the stock pipeline on the same GPU. Run with `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
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
from in_process import plan_of, run_plan
from safetensors.torch import load
from tiny_checkpoints import make_wan
from tiny_families import save as save_model

from farm.task import Denoise
from pipelines import denoise
from pipelines.load import best_device
from pipelines.stage import Progress

IS_REHEARSAL = "LONGTAKE_GPU_TESTS" in os.environ  # on the CPU (everything.py)
DEVICE = best_device()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or IS_REHEARSAL), reason="no CUDA GPU is here"),
]


def test_latents_equal_the_stock_pipeline_on_the_same_gpu(tmp_path: Path) -> None:
    folder = make_wan(tmp_path / "wan")
    shots = [{"id": "a", "prompt": "a red ball rolls over grass", "frames": 17}]
    plan = plan_of({"size": "128x96", "fps": 16, "steps": 6, "seed": 5, "guidance": 5.0, "shots": shots}, folder)
    made = run_plan(plan, targets=plan.shots[0].frames)
    (key,) = plan.tasks[plan.shots[0].frames[0]].inputs
    ours = load(made[key])["latents"]

    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32).to(DEVICE)
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(
        "a red ball rolls over grass", width=128, height=96, num_frames=17, num_inference_steps=6, guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(5), output_type="latent",
    ).frames.cpu()  # fmt: skip
    assert (ours - stock).abs().max() <= 1e-4 * stock.abs().max()  # kernels may be chosen anew in each process


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_families_equal_the_stock_pipeline_on_the_same_gpu(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = save_model(case.make, tmp_path / "model")
    board, given, paths = board_of(case, tmp_path)
    plan, ours = run(board, folder, paths, frames_only=True)
    pipe = stock_pipeline(case, folder).to(DEVICE)
    expected, _ = both_kinds(pipe, stock_call(case, pipe, board, **given), SEED)
    latents = latents_behind(plan, ours, plan.shots[0].frames[0])
    expected = in_our_layout(expected.cpu(), latents, case.layout)
    assert (latents[:, :, -expected.shape[2] :] - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("offload", ["model", "group", "sequential"])
def test_weights_on_the_host_give_the_same_latents(offload: str, tmp_path: Path) -> None:
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    plan, made = run(board, folder, {}, frames_only=True)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    stage = denoise.Stage(str(folder), [c for c, _ in task.components], offload=offload)
    latents = load(stage.run(task.request, [made[k] for k in task.inputs], Progress()).artifact)["latents"]
    expected = load(made[task.key])["latents"]
    assert (latents - expected).abs().max() <= 1e-4 * expected.abs().max()
