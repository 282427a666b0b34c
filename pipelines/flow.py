"""Optical flow and what is done with it: warping, and where two directions agree.

DIS: Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016), as OpenCV has it. The forward-backward check
is that of Lai et al., "Learning Blind Video Temporal Consistency" (2018).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipelines.frames import Frame

Array = NDArray[Any]
MAX_WIDTH_PX = 256


def compared(frame: Frame) -> Frame:
    """The frame at most 256 px wide, as measures compare frames."""
    height, width = frame.shape[:2]
    if width <= MAX_WIDTH_PX:
        return frame
    size = (MAX_WIDTH_PX, max(16, round(height * MAX_WIDTH_PX / width)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def flow_between(of: Frame, to: Frame) -> Array:
    """Dense optical flow (H, W, 2): pixel p of `of` is at p + flow in `to`."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (of, to)]
    return np.asarray(dis.calc(gray[0], gray[1], None))  # type: ignore[call-overload]  # None: no initial flow


def warp(picture: Array, flow: Array) -> Array:
    """The picture seen from where the flow begins: pixel p is taken from p + flow."""
    at = _targets(flow)
    return np.asarray(
        cv2.remap(picture, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )  # fmt: skip


def consistent(flow: Array, back: Array) -> NDArray[np.bool_]:
    """Where following the flow and then the flow back leads home, within the picture: (H, W)."""
    height, width = flow.shape[:2]
    at = _targets(flow)
    returned = warp(back, flow)
    off = ((flow + returned) ** 2).sum(-1)
    seen = off <= 0.01 * ((flow**2).sum(-1) + (returned**2).sum(-1)) + 0.5
    inside = (at >= 0).all(-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
    return np.asarray(seen & inside)


def _targets(flow: Array) -> NDArray[np.float32]:
    height, width = flow.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    return np.asarray(grid + flow, np.float32)
