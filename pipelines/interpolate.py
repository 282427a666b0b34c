"""The interpolate stage: frames between frames, by RIFE or by optical flow. Frames at exact times stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch

from farm.errors import InputError
from farm.film.interpolation import rife_weights
from farm.task import Interpolate
from pipelines import rife_setup
from pipelines.finite import check_finite
from pipelines.flow import consistent, flow_between, warp
from pipelines.frames import Frame, write_lossless
from pipelines.load import DTYPES, best_device
from pipelines.rife import Rife
from pipelines.stage import Artifact, Progress, Result
from pipelines.strips import pairs, source_frames

Between = Callable[[Frame, Frame, float], Frame]


class Stage:
    """Of all models it needs RIFE's only, and none for optical flow, whose tasks name no component."""

    def __init__(self, model: str = "", components: Sequence[str] = (), *, dtype: str = "float32") -> None:
        self.between: Between = by_flow
        if components:
            weights = rife_weights()
            rife_setup.main()  # another machine than the door's may not have them yet
            try:
                self.between = by_rife(Rife.load(weights, device=best_device(), dtype=DTYPES[dtype]))
            except (OSError, ValueError) as e:
                raise InputError(
                    f"RIFE's weights must be at {weights} on every machine that interpolates: run "
                    f"`python -m pipelines.rife_setup` there, or say output.interpolate: flow ({e})"
                ) from e

    @torch.no_grad()
    def run(self, request: Interpolate, inputs: Sequence[Artifact], progress: Progress) -> Result:
        strip = request.strip

        def made() -> Iterator[Frame]:
            for i, (a, b, share) in enumerate(pairs(source_frames(strip, inputs), strip)):
                progress.advance(i, strip.num_frames)
                yield a if b is None else self.between(a, b, float(share))

        frames = made()
        first = next(frames)
        height, width, _ = first.shape
        return Result(write_lossless(chain([first], frames), width_px=width, height_px=height))


def by_rife(model: Rife) -> Between:
    parameter = next(model.parameters())

    def between(a: Frame, b: Frame, share: float) -> Frame:
        pictures = (torch.from_numpy(f).permute(2, 0, 1)[None].to(parameter.device, parameter.dtype) for f in (a, b))
        x, y = (p / 255 for p in pictures)
        made: torch.Tensor = model(x, y, share)[0]
        check_finite({"frame": made}, "a frame that interpolate has made", {"rife": model})
        shown = made.float().cpu().clamp(0, 1).permute(1, 2, 0)
        return np.asarray((shown * 255).round().to(torch.uint8).numpy())

    return between


def by_flow(a: Frame, b: Frame, share: float) -> Frame:
    """Warp both frames to the time between them and mix what is seen in both.

    Flows at that time are taken from those between the frames, assuming straight motion: Jiang et al., "Super SloMo"
    (2018), equation 4. Where the frames' flows disagree, the nearer frame counts.
    """
    forth, back = flow_between(a, b), flow_between(b, a)
    to_a = -(1 - share) * share * forth + share * share * back
    to_b = (1 - share) ** 2 * forth - share * (1 - share) * back
    from_a, from_b = warp(a.astype(np.float32), to_a), warp(b.astype(np.float32), to_b)
    weight_a = (1 - share) * np.where(consistent(forth, back), 1.0, 0.2)[..., None]
    weight_b = share * np.where(consistent(back, forth), 1.0, 0.2)[..., None]
    mixed = (weight_a * from_a + weight_b * from_b) / (weight_a + weight_b)
    return np.asarray(mixed.clip(0, 255).round(), np.uint8)
