"""Whether anything can be seen in a shot: black, flat and frozen shots are finished films that are nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLACK, FLAT, FROZEN = (
    4.0,
    1.0,
    0.05,
)  # below these, in levels of 255; where nothing moves the built-in model's differ by 0.8


@dataclass(frozen=True)
class Look:
    """What can be seen in a stretch of frames, in levels of 255."""

    brightness: float  # mean of the brightest frame
    detail: float  # standard deviation within the frame that has the most
    motion: float | None  # mean difference between the two neighbouring frames that differ the most; of one frame: none


def fault_of(looks: Sequence[Look]) -> str:
    """What is wrong with a shot of these stretches, in words; empty where nothing is."""
    moves = [look.motion for look in looks if look.motion is not None]
    if all(look.detail < FLAT for look in looks):
        return "is black" if all(look.brightness < BLACK for look in looks) else "is one flat colour"
    return "does not move: all its frames are alike" if moves and max(moves) < FROZEN else ""
