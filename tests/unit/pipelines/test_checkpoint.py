"""A denoise loop that is stopped at any step and goes on in another process ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from farm.errors import Halted
from farm.task import Denoise, Slice
from pipelines.checkpoint import StepState, pack, unpack
from pipelines.denoise import Stage, denoise
from pipelines.family import Given, Run, family_of
from pipelines.stage import Progress

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with numpy 2
STEPS = 8
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc, flow": ("UniPCMultistepScheduler", FLOW),
    "unipc, order 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow euler, dynamic": ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0, "use_karras_sigmas": True}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++ 2m, flow": ("DPMSolverMultistepScheduler", FLOW),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "ddim": ("DDIMScheduler", {}),
    "cogvideox ddim": ("CogVideoXDDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler, karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}


def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(latents * 0.3) + 0.01 * torch.sin(t.float())


def make(name: str) -> Any:
    kind, settings = SCHEDULERS[name]
    return getattr(diffusers, kind)(**settings)


def run(scheduler: Any, latents: torch.Tensor, generator: torch.Generator, *, first: int, last: int) -> torch.Tensor:
    takes = scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
    extra = {"generator": generator} if "generator" in takes else {}
    for t in scheduler.timesteps[first:last]:
        model_input = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(predict(model_input, t), t, latents, return_dict=False, **extra)[0]
    return latents


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_from_every_step(name: str) -> None:
    noise = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, generator = make(name), torch.Generator().manual_seed(1)
    whole.set_timesteps(STEPS)
    count = len(whole.timesteps)
    expected = run(whole, noise, generator, first=0, last=count)
    for stop in range(1, count):
        one, drawn = make(name), torch.Generator().manual_seed(1)
        one.set_timesteps(STEPS)
        half = run(one, noise, drawn, first=0, last=stop)
        data = pack(StepState(stop, half, {"old": half + 1}), one, drawn)
        other, redrawn = make(name), torch.Generator().manual_seed(99)
        other.set_timesteps(STEPS)
        state = unpack(data, other, device="cpu", generator=redrawn)
        assert state.step == stop
        assert torch.equal(state.extra["old"], half + 1)
        assert torch.equal(run(other, state.latents, redrawn, first=stop, last=count), expected), (name, stop)


def test_a_state_of_another_scheduler_is_refused() -> None:
    one, other = make("ddim"), make("euler")
    one.set_timesteps(STEPS)
    other.set_timesteps(STEPS)
    with pytest.raises(ValueError, match="must be of a EulerDiscreteScheduler, got DDIMScheduler"):
        unpack(pack(StepState(1, torch.zeros(1)), one), other, device="cpu")


def test_what_cannot_be_kept_is_not_lost_in_silence() -> None:
    scheduler = make("ddim")
    scheduler.secret = object()
    with pytest.raises(TypeError, match=r"scheduler\.secret is a object"):
        pack(StepState(1, torch.zeros(1)), scheduler)


def loop(latents: torch.Tensor, predict: Any, progress: Progress) -> torch.Tensor:
    scheduler = make("unipc, flow")
    scheduler.set_timesteps(STEPS)
    request = Denoise("wan", "text", tuple(latents.shape), STEPS, 1.0, 1.0, 0, ())
    run = Run(request, scheduler, torch.Generator(), Given({}, None))
    return denoise(latents, family=family_of("wan"), run=run, predict=predict, progress=progress, components={})


def test_a_halted_loop_keeps_its_state_first_and_another_one_goes_on() -> None:
    noise = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = loop(noise, predict, Progress())
    kept: list[tuple[int, bytes, bool]] = []
    progress = Progress(keep=lambda *told: kept.append(told), keep_every_steps=3)

    def halting(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        progress.halted = len(kept) == 1
        return predict(latents, t)

    with pytest.raises(Halted, match="after step 4 of 8"):
        loop(noise, halting, progress)
    assert [(step, is_last) for step, _, is_last in kept] == [(3, False), (4, True)]
    after = Progress(saved=kept[-1][1])
    made = loop(torch.zeros_like(noise), predict, after)
    assert after.resumed_at == 4
    assert torch.equal(made, expected)


def test_a_blended_take_goes_on_from_a_step(tiny_wan: Path) -> None:
    """A shifted grid depends on the number of the step, and the loop on nothing else that was not kept."""
    slices = (Slice(0, 3, 0, None), Slice(2, 3, 0, None), Slice(4, 3, 0, None))
    request = Denoise("wan", "text", (1, 16, 7, 4, 4), 6, 1.0, 1.0, 3, slices, noise="free", shift=True)
    from safetensors.torch import load, save

    text = save({"embeds": torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(0))})
    stage, kept = Stage(str(tiny_wan)), list[bytes]()
    progress = Progress(keep=lambda step, data, is_last: kept.append(data), keep_every_steps=1)
    whole = load(stage.run(request, [text], progress).artifact)["latents"]
    assert len(kept) == 5
    for data in kept:
        again = load(Stage(str(tiny_wan)).run(request, [text], Progress(saved=data)).artifact)["latents"]
        assert torch.equal(again, whole)
