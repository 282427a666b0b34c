"""A NaN anywhere ends in an error that names the stage, and nothing of it is kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import plan_of
from safetensors.torch import load, load_file, save_file
from tiny_checkpoints import make_wan

from actors.worker import cause_of
from farm.errors import InputError, NotFinite
from farm.task import Denoise
from pipelines import denoise as stage_module
from pipelines.finite import check_finite
from pipelines.in_process import run_plan
from pipelines.interpolate import by_rife
from pipelines.rife import Rife
from pipelines.stage import Progress

BOARD: dict[str, Any] = {
    "size": "64x48", "fps": 16, "steps": 6, "seed": 5,
    "shots": [{"id": "a", "prompt": "a red ball rolls", "frames": 9}],
}  # fmt: skip


def spoil(folder: Path, component: str, value: float) -> str:
    """Put one value into one weight of a component, and say which."""
    (path,) = (folder / component).glob("*.safetensors")
    weights = load_file(path)
    name = next(n for n, w in weights.items() if n.endswith("weight") and w.dim() > 1)
    weights[name].view(-1)[0] = value
    save_file(weights, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_bad_input_and_named(component: str, value: float, tmp_path: Path) -> None:
    folder = make_wan(tmp_path / "wan")
    name = spoil(folder, component, value)
    with pytest.raises(InputError, match="must hold finite numbers") as caught:
        run_plan(plan_of(BOARD, folder))
    told = str(caught.value)
    assert component in told and (
        name in told or component == "text_encoder"
    )  # its embedding is tied under other names
    stage = {"text_encoder": "encode", "transformer": "denoise", "vae": "decode"}[component]
    assert stage in told
    assert cause_of(caught.value) == "input"


def denoised(folder: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch, *, bad_step: int) -> None:
    """Run a denoise task whose arithmetic overflows at one step."""
    plan = plan_of(BOARD, folder)
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    made = run_plan(plan, targets=task.inputs)
    stage = stage_module.Stage(str(folder), [c for c, _ in task.components])
    family = stage_module.family_of("wan")
    step, count = family.step, itertools.count(1)

    def overflowing(run: Any, *values: Any) -> torch.Tensor:
        after = step(run, *values)
        return after * float("inf") if next(count) == bad_step else after

    monkeypatch.setattr(type(family), "step", lambda self, *values: overflowing(*values))
    stage.run(task.request, [made[k] for k in task.inputs], progress)


def test_an_overflow_is_told_with_the_step_and_what_to_do(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFinite, match=r"denoise's latent after step 6 of 6.*float32.*bfloat16 or float32") as caught:
        denoised(tiny_wan, Progress(), monkeypatch, bad_step=3)
    assert cause_of(caught.value) == "overflow"


def test_no_checkpoint_is_kept_of_what_is_not_finite(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def keep(step: int, state: bytes, is_last: bool) -> None:
        kept.append(step)
        assert torch.isfinite(load(state)["latents"]).all()

    with pytest.raises(NotFinite, match="after step 3 of 6"):
        denoised(tiny_wan, Progress(keep=keep, keep_every_steps=1), monkeypatch, bad_step=3)
    assert kept == [1, 2]


def test_weights_are_not_looked_at_while_outputs_are_good(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import finite

    monkeypatch.setattr(finite, "bad_weights", lambda module: pytest.fail("a pass over all weights"))
    run_plan(plan_of(BOARD, tiny_wan))


def test_an_overflow_is_not_blamed_on_a_causal_mask() -> None:
    """CLIP and its kin hold masks full of infinities, which no file has given them."""
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1), persistent=False)
    with pytest.raises(NotFinite, match="an overflow in float32"):
        check_finite({"embeds": torch.tensor([float("inf")])}, "what encode makes", {"text_encoder": module})


def test_a_frame_that_interpolation_makes_is_looked_at_too() -> None:
    model = Rife()
    name, weight = list(model.named_parameters())[-1]
    frame = np.zeros((64, 64, 3), np.uint8)
    with torch.no_grad():
        by_rife(model)(frame, frame, 0.5)
        weight.fill_(float("nan"))
        with pytest.raises(InputError, match=f"rife.{name} must hold finite numbers"):
            by_rife(model)(frame, frame, 0.5)
