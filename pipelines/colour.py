"""Colours that drift from chunk to chunk: how far they step at a join, what to do about it, and doing it.

A step is measured in CIE Lab on pixels that optical flow finds in both frames, and only as far as it exceeds how the
colours move just before and after the join, so that a sunset stays one. Corrections move whole chunks: those are
sought that make the joins vanish while staying small (ridge regression), and are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from farm.task import MeasureColour, SolveColour

from .flow import compared, consistent, flow_between, warp
from .frames import Frame

Array = NDArray[np.float64]
AROUND = 3  # frames on each side of a join that are looked at
MAX_STEP = 5.0  # of Lab: what jumps further is another picture, not drift
MAX_CORRECTION = 6.0
RIDGE = 0.02  # how much a correction costs against a step that stays
UNSEEN = 0.15  # corrections below this are not worth touching bits for


def measure_colour(request: MeasureColour, frames: Iterable[Frame]) -> bytes:
    """By how much Lab steps at the join beyond its course around it: JSON with `lab`, three numbers."""
    first, end = request.join - AROUND, request.join + AROUND
    near: list[Frame] = []
    at: list[int] = []
    for number, frame in enumerate(frames, start=request.source_frame):
        if number >= end:
            break
        if number >= first:
            near.append(compared(frame))
            at.append(number)
    moves = {b: _lab_move(near[i], near[i + 1]) for i, b in enumerate(at[1:])}
    across = moves.pop(request.join)
    course = np.median(list(moves.values()), axis=0) if moves else np.zeros(3)
    return json.dumps({"lab": [round(float(v), 4) for v in across - course]}).encode()


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
    """The correction of every chunk in Lab that best undoes the measured steps: JSON with `lab`, a row a chunk.

    Minimises sum over joins (c[k] - c[k - 1] + step[k])^2 + RIDGE * sum over chunks c[k]^2. Chunk 0 of a shot that
    goes on from another joins to that one's last correction, which is given.
    """
    steps = np.array([json.loads(m)["lab"] for m in measures], np.float64)
    steps[np.linalg.norm(steps, axis=1) > MAX_STEP] = 0
    anchor = np.array(json.loads(before)["lab"][-1]) if before is not None else np.zeros(3)
    rows = np.zeros((len(steps), request.num_chunks))
    wanted = -steps
    for i, chunk in enumerate(request.joins):
        rows[i, chunk] = 1
        if chunk:
            rows[i, chunk - 1] = -1
        else:
            wanted[i] += anchor
    normal = rows.T @ rows + RIDGE * np.eye(request.num_chunks)
    found = np.linalg.solve(normal, rows.T @ wanted)
    size = np.linalg.norm(found, axis=1, keepdims=True)
    found *= np.minimum(1, MAX_CORRECTION / np.maximum(size, 1e-9))
    return json.dumps({"lab": [[round(float(v), 3) for v in row] for row in found]}).encode()


@dataclass(frozen=True)
class Corrections:
    """What to add to the Lab of each chunk's frames."""

    starts: Sequence[int]  # the first frame of each chunk
    lab: NDArray[np.float32]  # (chunks, 3)

    @classmethod
    def from_json(cls, data: bytes, starts: Sequence[int]) -> Corrections:
        return cls(starts, np.array(json.loads(data)["lab"], np.float32))

    def apply(self, frame: Frame, number: int) -> Frame:
        """Frame `number` of the shot with its chunk's correction; the very frame where that is next to nothing."""
        chunk = max(int(np.searchsorted(self.starts, number, side="right")) - 1, 0)
        if np.abs(self.lab[chunk]).max() < UNSEEN:
            return frame
        moved = cv2.cvtColor(lab_of(frame) + self.lab[chunk], cv2.COLOR_LAB2RGB)
        return np.asarray((moved.clip(0, 1) * 255).round(), np.uint8)
