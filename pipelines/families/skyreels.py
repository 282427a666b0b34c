"""SkyReels-V2 diffusion forcing: Wan's autoencoder and text encoder, a timestep for every latent frame.

The history stands in the latents themselves: its frames are clean but for a little noise, and the model is told how
much by their timesteps. All other frames step together (the stock pipeline's `ar_step=0`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from farm.task import Denoise
from pipelines.families.wan import Wan
from pipelines.family import Draws, Given, Predict, Run, Tensors, guided_in_turn, step_of


class SkyReels(Wan):
    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        model, scheduler, settings = components["transformer"], components["scheduler"], dict(request.settings)
        dtype = model.dtype  # a walk over all modules
        context, told = given.context, settings["addnoise_condition"]
        share = 0.001 * told  # the model counts timesteps to 1000
        noise = Draws(request.seed, (), () if context is None else context.shape)
        fps = [0 if request.fps == 16 else 1]

        def predict(latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            timestep = t.long().repeat(1, latents.shape[2])
            hidden = latents
            if context is not None:
                known = context.shape[2]
                history = context
                if told > 0:
                    drawn = noise.at(step_of(scheduler, t)).to(latents.device)
                    history = context * (1.0 - share) + drawn * share
                hidden = torch.cat([history, latents[:, :, known:]], dim=2)
                timestep[:, :known] = told

            def call(text: Tensors) -> torch.Tensor:
                out = model(
                    hidden_states=hidden.to(dtype), timestep=timestep,
                    encoder_hidden_states=text["embeds"].to(dtype), enable_diffusion_forcing=True,
                    fps=fps, return_dict=False,
                )[0]  # fmt: skip
                return out  # type: ignore[no-any-return]  # diffusers is untyped

            return guided_in_turn(model, call, given, request.guidance)

        return predict

    def step(self, run: Run, prediction: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """As the stock pipeline, whose first step writes over what UniPC has kept of its sample: it steps in place."""
        made = super().step(run, prediction, t, latents)
        if run.step == 0 and getattr(run.scheduler, "last_sample", None) is not None:
            run.scheduler.last_sample = made
        return made


FAMILY = SkyReels()
