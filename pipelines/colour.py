"""Colours that drift from chunk to chunk: how far they step at a join, what to do about it, and doing it.

A step is measured in CIE Lab on pixels that optical flow finds in both frames. A small causal autoencoder pulses where
a latent frame begins, and a sunset darkens all along, so only what a join steps beyond the places inside chunks where
latent frames begin counts, and of that what exceeds their spread. A chunk's correction undoes the steps before it; it
leaks away slowly, so that no error of measuring adds up for ever, and is bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from farm.task import MeasureColour, SolveColour
from pipelines.flow import compared, consistent, flow_between, warp
from pipelines.frames import Frame

Array = NDArray[np.float64]
MAX_STEP = 5.0  # of Lab: what jumps further is another picture, not drift
MAX_CORRECTION = 6.0
LEAK = 0.97  # of a chunk's correction that the next one keeps
UNSEEN = 0.15  # corrections below this are not worth touching bits for


def measure_colour(request: MeasureColour, frames: Iterable[Frame]) -> bytes:
    """By how much Lab steps at the join beyond what it does inside chunks: JSON with `lab`, three numbers."""
    wanted = {request.join, *request.inner}
    moves: dict[int, Array] = {}
    before: Frame | None = None
    for number, frame in enumerate(frames, start=request.source_frame):
        now = compared(frame)
        if number in wanted and before is not None:
            moves[number] = _lab_move(before, now)
        before = now
    step = moves.pop(request.join)
    if moves:
        inside = np.array(list(moves.values()))
        usual = np.median(inside, axis=0)
        spread = np.median(np.abs(inside - usual), axis=0)
        step = np.sign(step - usual) * np.maximum(np.abs(step - usual) - spread, 0)
    return json.dumps({"lab": [round(float(v), 4) for v in step]}).encode()


def _lab_move(a: Frame, b: Frame) -> Array:
    """Median change of Lab from `a` to `b`, where pixels of one are found in the other."""
    flow, back = flow_between(b, a), flow_between(a, b)
    seen = consistent(flow, back)
    if seen.mean() < 0.2:
        return np.zeros(3)
    change = lab_of(b) - warp(lab_of(a), flow)
    return np.asarray(np.median(change[seen], axis=0), np.float64)


def lab_of(frame: Frame) -> NDArray[np.float32]:
    """RGB uint8 to CIE Lab (L from 0 to 100)."""
    return np.asarray(cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def solve_colour(request: SolveColour, measures: Sequence[bytes], before: bytes | None) -> bytes:
    """The corrections in Lab that undo the measured steps one after the other: JSON with `lab`, a row each.

    c[k] = LEAK * c[k - 1] - step[k] after a measured join, else c[k - 1]; the first is 0, or the last one of the shot
    that this one goes on from.
    """
    steps = {k: np.array(json.loads(m)["lab"], np.float64) for k, m in zip(request.joins, measures, strict=True)}
    current = np.array(json.loads(before)["lab"][-1]) if before is not None else np.zeros(3)
    rows = []
    for k in range(request.num_corrections):
        if k in steps:
            step = steps[k] if np.linalg.norm(steps[k]) <= MAX_STEP else np.zeros(3)
            current = LEAK * current - step
            current = current * min(1.0, MAX_CORRECTION / max(float(np.linalg.norm(current)), 1e-9))
        rows.append([round(float(v), 3) for v in current])
    return json.dumps({"lab": rows}).encode()


@dataclass(frozen=True)
class Corrections:
    """What to add to the Lab of each chunk's frames."""

    starts: Sequence[int]  # the first frame of each chunk
    lab: NDArray[np.float32]  # (chunks, 3)

    @classmethod
    def from_json(cls, data: bytes, starts: Sequence[int], *, first: int = 0) -> Corrections:
        """Those of the chunks with these starts, of which the first is number `first`."""
        return cls(starts, np.array(json.loads(data)["lab"][first : first + len(starts)], np.float32))

    def apply(self, frame: Frame, number: int) -> Frame:
        """Frame `number` of the shot with its chunk's correction; the very frame where that is next to nothing."""
        chunk = max(int(np.searchsorted(self.starts, number, side="right")) - 1, 0)
        if np.abs(self.lab[chunk]).max() < UNSEEN:
            return frame
        moved = cv2.cvtColor(lab_of(frame) + self.lab[chunk], cv2.COLOR_LAB2RGB)
        return np.asarray((moved.clip(0, 1) * 255).round(), np.uint8)
