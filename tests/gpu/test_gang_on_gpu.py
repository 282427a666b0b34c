"""A gang over NCCL, as far as one GPU shows it: world size 1, weights sharded. Run with `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from family_cases import CASES, board_of, run
from ranks import denoise_on, ranks_of
from safetensors.torch import load
from tiny_families import save as save_model

from farm.pools.parallel import Degrees
from farm.task import Denoise
from pipelines.load import best_device

IS_REHEARSAL = "LONGTAKE_GPU_TESTS" in os.environ  # on the CPU (everything.py)
DEVICE = best_device()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or IS_REHEARSAL), reason="no CUDA GPU is here"),
]


@pytest.mark.parametrize("shard_weights", [False, True])
def test_a_gang_of_one_over_nccl_has_the_latents_of_one_process(shard_weights: bool, tmp_path: Path) -> None:
    if shard_weights:
        pytest.importorskip("deepspeed", reason="sharded weights need deepspeed")
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    plan, made = run(board, folder, {}, frames_only=True)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    inputs = [made[k] for k in task.inputs]
    names = [c for c, _ in task.components]
    with ranks_of(1, device=DEVICE) as one:
        (latents,) = one(denoise_on, str(folder), names, task.request, inputs, Degrees(), shard_weights=shard_weights)
    expected = load(made[task.key])["latents"]
    assert (latents - expected).abs().max() <= 1e-4 * expected.abs().max()
