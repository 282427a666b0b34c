"""How visible joins and cuts are: what happens across them, against what happens inside chunks.

Frames are compared at most 256 px wide. A small causal autoencoder pulses where a latent frame begins, so the measure
of "inside" is the median over those places, not over all frames. The warping error and its forward-backward check are
those of Lai et al., "Learning Blind Video Temporal Consistency" (2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from farm.task import MeasureSeams

Frame = NDArray[np.uint8]
Array = NDArray[Any]
MAX_WIDTH_PX = 256
FLOORS = {"mad": 0.25 / 255, "warp": 1e-5}  # below them a ratio would measure rounding


@dataclass(frozen=True)
class Step:
    """What happens from one frame to the next."""

    mad: float  # mean absolute difference, of 1
    warp: float  # mean squared difference after undoing the motion, where it can be seen in both
    flow_jump: float  # mean change of the optical flow against the step before, px of the compared size
    delta_e: float  # distance of the mean colours in Lab (CIE76)


@dataclass(frozen=True)
class Seam:
    """One join or cut; `frame` is the first model frame of its shot after it.

    Ratios are against the median inside chunks, `flow_jump` and `delta_e` are how much more than that median.
    """

    frame: int
    kind: str
    mad_ratio: float | None  # None, as the others, where no latent frame begins inside a chunk
    warp_ratio: float | None
    flow_jump: float | None
    delta_e: float | None


def measure_seams(request: MeasureSeams, frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Measure one shot.

    Args:
        frames: of the shot, preceded by `request.num_before` of the shot before.
    """
    wanted = dict.fromkeys(request.joins, "join") | dict(request.starts)
    steps = dict(_steps(frames, set(wanted) | set(request.inner), first=-request.num_before))
    inner = [steps[i] for i in request.inner if i in steps]
    seams = []
    for frame, kind in sorted(wanted.items()):
        step = steps[frame]
        if not inner:
            seams.append(asdict(Seam(frame, kind, None, None, None, None)))
            continue
        typical = {k: float(np.median([getattr(s, k) for s in inner])) for k in Step.__annotations__}
        ratio = {k: max(getattr(step, k), low) / max(typical[k], low) for k, low in FLOORS.items()}
        more = {k: getattr(step, k) - typical[k] for k in ("flow_jump", "delta_e")}
        seam = Seam(frame, kind, mad_ratio=ratio["mad"], warp_ratio=ratio["warp"], **more)
        seams.append({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(seam).items()})
    return seams


def _steps(frames: Iterable[Frame], wanted: set[int], *, first: int) -> Iterator[tuple[int, Step]]:
    """(i, step from frame i - 1 to frame i) for the wanted i; holds three frames at a time."""
    before: list[Array] = []  # the last frames, compared size
    flow_at: dict[int, Array] = {}
    for i, frame in enumerate(frames, start=first):
        now = _compared(frame)
        if i in wanted and before:
            flow = _flow(now, before[-1])
            last = flow_at.get(i - 1)
            if last is None and len(before) > 1:
                last = _flow(before[-1], before[-2])
            jump = float(np.linalg.norm(flow - last, axis=-1).mean()) if last is not None else 0.0
            flow_at = {i: flow}
            a, b = (f.astype(np.float32) / 255 for f in (before[-1], now))
            colours = [cv2.cvtColor(f.mean((0, 1), keepdims=True), cv2.COLOR_RGB2LAB)[0, 0] for f in (a, b)]
            yield (
                i,
                Step(
                    mad=float(np.abs(b - a).mean()),
                    warp=_warp_error(before[-1], now, flow),
                    flow_jump=jump,
                    delta_e=float(np.linalg.norm(colours[1] - colours[0])),
                ),
            )
        before = [*before, now][-2:]


def _compared(frame: Frame) -> Frame:
    height, width = frame.shape[:2]
    if width <= MAX_WIDTH_PX:
        return frame
    size = (MAX_WIDTH_PX, max(16, round(height * MAX_WIDTH_PX / width)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _flow(of: Frame, to: Frame) -> Array:
    """Dense optical flow (H, W, 2): pixel p of `of` is at p + flow in `to`. DIS (Kroeger et al. 2016)."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (of, to)]
    return np.asarray(dis.calc(gray[0], gray[1], None))  # type: ignore[call-overload]  # None: no initial flow


def _warp_error(a: Frame, b: Frame, b_to_a: Array) -> float:
    """Mean squared difference between `b` and `a` brought to `b` along the flow, where flows agree both ways."""
    height, width = a.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    at = (grid + b_to_a).astype(np.float32)
    warped, back = (
        cv2.remap(x, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for x in (a.astype(np.float32) / 255, _flow(a, b))
    )
    off = ((b_to_a + back) ** 2).sum(-1)
    seen = off <= 0.01 * ((b_to_a**2).sum(-1) + (back**2).sum(-1)) + 0.5
    seen &= (at >= 0).all(-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
    if not seen.any():
        return 1.0
    return float(((b.astype(np.float32) / 255 - warped) ** 2).mean(-1)[seen].mean())
