"""The frame rule of a model: which numbers of frames one call of it can generate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameRule:
    """Lengths of the form `factor * n + remainder` frames (Wan: 4n+1)."""

    factor: int
    remainder: int

    def __str__(self) -> str:
        if self.factor == 1:
            return "any"
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

    def latent_at(self, frame: int) -> int:
        """The latent frame of a stream that stands for a frame of it."""
        return (frame - (self.remainder or self.factor)) // self.factor + 1

    def num_frames(self, num_latents: int) -> int:
        """Frames that the first `num_latents` latent frames of a stream stand for."""
        if num_latents == 0:
            return 0
        return num_latents * self.factor - (self.factor - self.remainder if self.remainder else 0)
