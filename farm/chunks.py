"""Which lengths a model can generate, and how a shot's length becomes one of them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class FrameRule:
    """Lengths of the form `factor * n + remainder` frames (Wan: 4n+1)."""

    factor: int
    remainder: int

    def __str__(self) -> str:
        return f"{self.factor}n+{self.remainder}" if self.remainder else f"{self.factor}n"

    def allows(self, num_frames: int) -> bool:
        return num_frames >= max(self.remainder, 1) and (num_frames - self.remainder) % self.factor == 0

    def at_least(self, num_frames: int) -> int:
        """The shortest allowed length that is not below `num_frames`."""
        shortest = self.remainder or self.factor
        steps = max(0, -(-(num_frames - shortest) // self.factor))
        return shortest + steps * self.factor

    def neighbours(self, num_frames: int) -> tuple[int, ...]:
        """The allowed lengths on both sides of one that is not allowed (one at the lower end)."""
        above = self.at_least(num_frames)
        below = above - self.factor
        return (below, above) if self.allows(below) else (above,)

    def num_latents(self, num_frames: int) -> int:
        """Latent frames of an allowed length: with a remainder, the first stands for `remainder` frames."""
        return (num_frames - self.remainder) // self.factor + (1 if self.remainder else 0)


@dataclass(frozen=True)
class Chunk:
    """What one model call generates, in frames of its shot; `kept` of `generated` frames are in the film."""

    first_frame: int
    generated: int
    kept: int
    overlap: int = 0


def round_half_up(value: Fraction) -> int:
    return int((2 * value.numerator + value.denominator) // (2 * value.denominator))


def num_frames_of(*, seconds: float, fps: float) -> int:
    """seconds x fps to the nearest frame, halves up; at least one. Both numbers are taken as written in decimal."""
    return max(1, round_half_up(Fraction(str(seconds)) * Fraction(str(fps))))


def num_delivered(num_frames: int, *, fps: float, output_fps: float) -> int:
    """How many frames a shot of `num_frames` model frames delivers at `output_fps`, halves up."""
    return max(1, round_half_up(num_frames * Fraction(str(output_fps)) / Fraction(str(fps))))


def cut_into_chunks(*, num_frames: int, chunk_frames: int, rule: FrameRule) -> list[Chunk]:
    """Cover a shot that fits into one chunk: the next allowed length is generated and its tail is cut.

    Raises:
        ValueError: the shot is longer than one chunk.
    """
    if num_frames > chunk_frames:
        raise ValueError(f"num_frames must be at most chunk_frames ({chunk_frames}), got {num_frames}")
    return [Chunk(0, rule.at_least(num_frames), num_frames)]
