"""How the chunks of one long latent are generated together (`blend`).

At each step every slice of the latent is predicted by itself and the predictions are averaged where slices overlap, as
in MultiDiffusion (Bar-Tal et al. 2023) and Gen-L-Video (Wang et al. 2023), with ramps instead of flat weights. The
weights are normalised before they are applied and predictions are added in the order of the slices, so that one slice
alone is the model's own prediction, and bits do not depend on who was first to answer.

Legend: B batch (1), C latent channels, F latent frames, H and W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from farm.task import Denoise, Slice
from pipelines.family import Predict

NUM_GRIDS = 4  # at most, with a shifted grid


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
        self, parts: Mapping[int, torch.Tensor], t: torch.Tensor, own: Callable[[int], torch.Tensor]
    ) -> Mapping[int, torch.Tensor]:
        """The predictions of slices, by number; `own(i)` predicts one here."""


Grid = dict[int, Slice]  # slices by their number among those of all grids


def grids_of(request: Denoise) -> list[Grid]:
    """The slices that cover the latent, one grid for each step in turn.

    With `shift` joins are not in the same places at every step: further grids begin later by parts of the stride. Such
    a slice takes the prompt of the one of the first grid that begins nearest, but not of the very first one, which is
    told that the stream begins.
    """
    base = list(request.slices)
    grids = [base]
    if request.shift and len(base) > 1:
        stride, length, total = base[1].first_latent, base[0].num_latents, request.latent_shape[2]
        offsets = sorted({stride * g // NUM_GRIDS for g in range(NUM_GRIDS)} - {0})
        for offset in offsets:
            starts = sorted({min(at, total - length) for at in range(offset, total - length + stride, stride)})
            moved = [min(base[1:], key=lambda s: abs(s.first_latent - at)) for at in starts]  # used at once
            grids.append([base[0], *(replace(s, first_latent=at) for s, at in zip(moved, starts, strict=True))])
    numbered, at = [], 0
    for grid in grids:
        numbered.append(dict(enumerate(grid, start=at)))
        at += len(grid)
    return numbered


def blend(
    grids: Sequence[Grid], predicts: Mapping[int, Predict], *, step_of: Callable[[torch.Tensor], int],
    share: Share | None = None,
) -> Predict:  # fmt: skip
    """One prediction for the whole latent out of one `predict` for each slice.

    Args:
        step_of: the number of the step with a timestep.
    """
    if [len(grid) for grid in grids] == [1]:
        return next(iter(predicts.values()))
    weights = [[w.view(1, 1, -1, 1, 1) for w in blend_weights(list(grid.values()))] for grid in grids]

    def predict(latents_BCFHW: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        turn = step_of(t) % len(grids)
        cuts = {i: slice(s.first_latent, s.first_latent + s.num_latents) for i, s in grids[turn].items()}
        parts = {i: latents_BCFHW[:, :, cut].contiguous() for i, cut in cuts.items()}

        def own(i: int) -> torch.Tensor:
            return predicts[i](parts[i], t)

        made = share.predict(parts, t, own) if share else {i: own(i) for i in parts}
        whole = torch.zeros_like(latents_BCFHW)
        for (i, cut), weight in zip(cuts.items(), weights[turn], strict=True):
            whole[:, :, cut] += weight.to(whole) * made[i]
        return whole

    return predict


def anchored(predict: Predict, anchor_BCFHW: torch.Tensor) -> Predict:
    """A slice's prediction with a clean latent frame put before it, which `predict` takes as its context."""

    def with_anchor(latents_BCFHW: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return predict(torch.cat([anchor_BCFHW, latents_BCFHW], 2), t)[:, :, anchor_BCFHW.shape[2] :].contiguous()

    return with_anchor


def free_noise(noise_BCFHW: torch.Tensor, *, window: int, stride: int, generator: torch.Generator) -> torch.Tensor:
    """Noise whose further frames are those of the first window, shuffled within each stride.

    Slices then begin from like noise and agree better in their overlaps: Qiu et al., "FreeNoise" (2023).
    """
    made = noise_BCFHW.clone()
    for at in range(window, made.shape[2], stride):
        size = min(stride, made.shape[2] - at)
        order = torch.randperm(size, generator=generator).to(made.device)
        made[:, :, at : at + size] = made[:, :, at - window : at - window + size][:, :, order]
    return made
