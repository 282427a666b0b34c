"""How the chunks of one long latent are generated together (`blend`).

At each step every slice of the latent is predicted by itself and the predictions are averaged where slices overlap, as
in MultiDiffusion (Bar-Tal et al. 2023) and Gen-L-Video (Wang et al. 2023), with ramps instead of flat weights. The
weights are normalised before they are applied and predictions are added in the order of the slices, so that one slice
alone is the model's own prediction, and bits do not depend on who was first to answer.

Legend: B batch (1), C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from farm.task import Slice

from .families.wan import Predict


def blend_weights(slices: Sequence[Slice]) -> list[torch.Tensor]:
    """For each slice the weight of each of its latent frames, float32 (F,); in every latent frame they add up to 1.

    Towards a neighbour a slice's weight falls linearly over the frames that they share, never to zero.
    """
    total = max(s.first_latent + s.num_latents for s in slices)
    ramps = []
    for i, s in enumerate(slices):
        ramp = torch.ones(s.num_latents, dtype=torch.float64)
        if i:
            shared = _shared(slices[i - 1], s)
            ramp[:shared] *= _rising(shared)
        if i + 1 < len(slices) and (shared := _shared(s, slices[i + 1])):
            ramp[-shared:] *= _rising(shared).flip(0)
        ramps.append(ramp)
    sums = torch.zeros(total, dtype=torch.float64)
    for s, ramp in zip(slices, ramps, strict=True):
        sums[s.first_latent : s.first_latent + s.num_latents] += ramp
    return [
        (ramp / sums[s.first_latent : s.first_latent + s.num_latents]).float()
        for s, ramp in zip(slices, ramps, strict=True)
    ]


def _shared(one: Slice, other: Slice) -> int:
    return max(0, one.first_latent + one.num_latents - other.first_latent)


def _rising(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 1) / (count + 1)


class Share(Protocol):
    """Whoever spreads the slices of a step over several processes."""

    def predict(
        self, parts: Sequence[torch.Tensor], t: torch.Tensor, own: Callable[[int], torch.Tensor]
    ) -> list[torch.Tensor]:
        """The predictions of all slices in order; `own(i)` predicts one here."""


def blend(slices: Sequence[Slice], predicts: Sequence[Predict], share: Share | None = None) -> Predict:
    """One prediction for the whole latent out of one `predict` for each slice."""
    if len(slices) == 1:
        return predicts[0]
    weights = [w.view(1, 1, -1, 1, 1) for w in blend_weights(slices)]

    def predict(latents_BCFHW: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cuts = [slice(s.first_latent, s.first_latent + s.num_latents) for s in slices]
        parts = [latents_BCFHW[:, :, cut].contiguous() for cut in cuts]

        def own(i: int) -> torch.Tensor:
            return predicts[i](parts[i], t)

        made = share.predict(parts, t, own) if share else [own(i) for i in range(len(parts))]
        whole = torch.zeros_like(latents_BCFHW)
        for cut, weight, prediction in zip(cuts, weights, made, strict=True):
            whole[:, :, cut] += weight.to(whole) * prediction
        return whole

    return predict
