"""How visible joins and cuts are: what happens across them, against what happens inside chunks.

Frames are compared at most 256 px wide. A small causal autoencoder pulses where a latent frame begins, so the measure
of "inside" is the median over those places, not over all frames. The warping error is that of Lai et al., "Learning
Blind Video Temporal Consistency" (2018).

What changes slowly shows at no join, so each chunk is also compared with the shot's first: sharpness (variance of the
Laplacian: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000), contrast, and the mean colour of
what moves otherwise than most of the picture does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from farm.task import MeasureSeams
from pipelines.flow import compared, consistent, flow_between, warp
from pipelines.frames import Frame

Array = NDArray[Any]
DRIFT_EVERY = 4  # frames: chunks are compared by every so many of theirs
MOVES_PX = 0.75  # a frame: a pixel moves whose flow differs by more from the picture's
MOVES_SHARE = 0.001  # of the picture: something moves that is more
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

    Ratios are against the median inside chunks, `flow_jump` and `delta_e` are how much more than that median. The last
    three, of joins alone, compare the chunk after the join with the first chunk of the shot; None where that cannot be.
    """

    frame: int
    kind: str
    mad_ratio: float | None  # None, as the others, where no latent frame begins inside a chunk
    warp_ratio: float | None
    flow_jump: float | None
    delta_e: float | None
    sharpness: float | None = None  # a ratio
    contrast: float | None = None  # a ratio
    moving_delta_e: float | None = None  # distance in Lab between the mean colours of what moves; coarse under a pan


class Drift:
    """How chunks look, from frames that are given one after another."""

    def __init__(self, joins: Iterable[int]) -> None:
        self.starts = [0, *sorted(joins)]
        self.found: dict[int, list[tuple[float, float, Array | None]]] = {}  # by the start of the chunk

    def look(self, i: int, frame: Frame, after: Frame) -> None:
        """Take in frame `i`; of the joins' shot alone."""
        if i < 0 or i % DRIFT_EVERY or len(self.starts) < 2:
            return
        gray, flow = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), flow_between(frame, after)
        moves = np.linalg.norm(flow - np.median(flow, axis=(0, 1)), axis=-1) > MOVES_PX
        colour: Array | None = None
        if moves.mean() > MOVES_SHARE:
            colour = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[moves].mean(0)
        row = (float(cv2.Laplacian(gray, cv2.CV_64F).var()), float(gray.std()), colour)
        self.found.setdefault(self.starts[bisect_right(self.starts, i) - 1], []).append(row)

    def at(self, join: int) -> dict[str, float | None]:
        """The chunk that begins at a join against the first."""
        first, chunk = self.found.get(0), self.found.get(join)
        if not first or not chunk:
            return {}
        made: dict[str, float | None] = {}
        for k, name in enumerate(("sharpness", "contrast")):
            old, new = (float(np.median([row[k] for row in rows])) for rows in (first, chunk))
            made[name] = new / old if old > 0 else None
        colours = [[row[2] for row in rows if row[2] is not None] for rows in (first, chunk)]
        if all(colours):
            old_Lab, new_Lab = (np.mean(c, axis=0) for c in colours)
            made["moving_delta_e"] = float(np.linalg.norm(new_Lab - old_Lab))
        return made


def measure_seams(request: MeasureSeams, frames: Iterable[Frame], *, first: int = 0) -> list[dict[str, Any]]:
    """Measure one shot.

    Args:
        first: number of the first of the frames; negative where those of the shot before precede them.
    """
    wanted = dict.fromkeys(request.joins, "join") | dict(request.starts)
    drift = Drift(request.joins)
    steps = dict(_steps(frames, set(wanted) | set(request.inner), drift, first=first))
    inner = [steps[i] for i in request.inner if i in steps]
    seams = []
    for frame, kind in sorted(wanted.items()):
        step, slow = steps[frame], drift.at(frame) if kind == "join" and frame in request.joins else {}
        slow = {k: None if v is None else round(v, 4) for k, v in slow.items()}
        if not inner:
            seams.append(asdict(Seam(frame, kind, None, None, None, None, **slow)))
            continue
        typical = {k: float(np.median([getattr(s, k) for s in inner])) for k in Step.__annotations__}
        ratio = {k: max(getattr(step, k), low) / max(typical[k], low) for k, low in FLOORS.items()}
        more = {k: getattr(step, k) - typical[k] for k in ("flow_jump", "delta_e")}
        seam = Seam(frame, kind, mad_ratio=ratio["mad"], warp_ratio=ratio["warp"], **more, **slow)
        seams.append({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(seam).items()})
    return seams


def _steps(frames: Iterable[Frame], wanted: set[int], drift: Drift, *, first: int) -> Iterator[tuple[int, Step]]:
    """(i, step from frame i - 1 to frame i) for the wanted i; holds three frames at a time."""
    before: list[Array] = []  # the last frames, compared size
    flow_at: dict[int, Array] = {}
    for i, frame in enumerate(frames, start=first):
        now = compared(frame)
        if before:
            drift.look(i - 1, before[-1], now)
        if i in wanted and before:
            flow = flow_between(now, before[-1])
            last = flow_at.get(i - 1)
            if last is None and len(before) > 1:
                last = flow_between(before[-1], before[-2])
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


def _warp_error(a: Frame, b: Frame, b_to_a: Array) -> float:
    """Mean squared difference between `b` and `a` brought to `b` along the flow, where flows agree both ways."""
    seen = consistent(b_to_a, flow_between(a, b))
    if not seen.any():
        return 1.0
    warped = warp(a.astype(np.float32) / 255, b_to_a)
    return float(((b.astype(np.float32) / 255 - warped) ** 2).mean(-1)[seen].mean())
