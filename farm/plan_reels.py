"""Plans what happens to decoded frames before they are seen: colours are matched, frames between frames made.

A reel is a shot's frames in the order that clips take them from: as decoded, or at the delivered rate already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .film import Film, FilmShot
from .interpolation import RIFE_COMPONENT
from .keys import make_task
from .plan_shots import ShotPlanner
from .task import Interpolate, MeasureColour, SolveColour, Strip


@dataclass(frozen=True)
class Piece:
    """One artifact of a reel: its frames are those from `first` to `end`, at the reel's rate."""

    key: str
    first: int
    end: int


@dataclass(frozen=True)
class Reel:
    """A shot's frames; delivered frame j shows the time of its frame j * step."""

    pieces: tuple[Piece, ...]
    step: Fraction
    colour: str | None = None  # the task that says how to move its colours, where that is not done yet
    chunk_starts: tuple[int, ...] = ()

    def strip(
        self, first: int, num_frames: int, *, step: Fraction | None = None, between: bool = False
    ) -> tuple[Strip, tuple[str, ...]]:
        """Some frames of the shot and the inputs that they need.

        Args:
            step: of the reel's frames for each of the strip's; by default that of the delivered frames.
            between: frames on both sides are looked at where a time lies between two.
        """
        step = self.step if step is None else step
        last = (first + num_frames - 1) * step
        begin, end = int(first * step), (math.ceil(last) if between else int(last)) + 1
        needed = [p for p in self.pieces if p.first < end and p.end > begin] or [self.pieces[-1]]
        keys = (*(p.key for p in needed), *([self.colour] if self.colour else []))
        starts = self.chunk_starts if self.colour else ()
        fraction = f"{step.numerator}/{step.denominator}"
        return Strip(first, num_frames, needed[0].first, len(needed), fraction, starts), keys


class ReelPlanner:
    """The reels of shots; `tasks` are those that each of them needs besides what generates it."""

    def __init__(self, planner: ShotPlanner, film: Film) -> None:
        self.planner, self.film = planner, film
        self.step = Fraction(str(film.fps)) / Fraction(str(film.output_fps))
        self.by_id = {shot.id: shot for shot in (*film.shots, *film.unseen)}
        self.tasks: dict[str, list[str]] = {shot: [] for shot in self.by_id}
        self._decoded: dict[str, Reel] = {}
        self._delivered: dict[str, Reel] = {}

    def decoded(self, shot: FilmShot) -> Reel:
        """A shot's frames as the model made them."""
        chain = [shot]
        while (source := chain[-1].continue_from) is not None and source not in self._decoded:
            chain.append(self.by_id[source])
        for one in reversed(chain):
            if one.id not in self._decoded:
                pieces = tuple(self._pieces(self.planner.frames[one.id]))
                starts = tuple(c.first_frame for c in one.chunks)
                self._decoded[one.id] = Reel(pieces, self.step, self._colour(one, pieces), starts)
        return self._decoded[shot.id]

    def delivered(self, shot: FilmShot) -> Reel:
        """A shot's frames as clips take them: where frames are made between frames, at the delivered rate."""
        if shot.id not in self._delivered:
            between = self.film.interpolate != "none" and self.step.denominator > 1
            self._delivered[shot.id] = self._interpolated(shot) if between else self.decoded(shot)
        return self._delivered[shot.id]

    def _pieces(self, keys: list[str]) -> Iterator[Piece]:
        at = 0
        for key, length in zip(keys, self.planner.lengths(keys), strict=True):
            yield Piece(key, at, at + length)
            at += length

    def _colour(self, shot: FilmShot, pieces: tuple[Piece, ...]) -> str | None:
        """Measure the joins of chunks that were generated one after the other, and solve for them together."""
        if not (shot.color_match and shot.mode == "extend" and shot.context != "none"):
            return None
        past = self.planner.past[shot.id][-1:]
        (length,) = self.planner.lengths(past) or [0]
        line = (*(Piece(key, -length, 0) for key in past), *pieces)
        measures: dict[int, str] = {}
        for k, chunk in enumerate(shot.chunks):
            around = [p for p in line if p.first <= chunk.first_frame <= p.end]
            if around and around[0].first < chunk.first_frame < around[-1].end:
                request = MeasureColour(chunk.first_frame, around[0].first)
                measures[k] = self._add(shot, request, tuple(p.key for p in around), num_frames=4)
        if not measures:
            return None
        source = self._decoded[shot.continue_from].colour if shot.continue_from else None
        solve = SolveColour(tuple(measures), len(shot.chunks), source is not None)
        return self._add(shot, solve, (*([source] if source else []), *measures.values()), num_frames=1)

    def _interpolated(self, shot: FilmShot) -> Reel:
        """One task for each decoded piece: the delivered frames whose time lies in it, and in the gap after it."""
        reel, film, pieces, first = self.decoded(shot), self.film, [], 0
        for piece in reel.pieces:
            is_last = piece is reel.pieces[-1]
            end = shot.num_delivered if is_last else min(math.ceil(piece.end / self.step), shot.num_delivered)
            if end <= first:
                continue
            strip, inputs = reel.strip(first, end - first, between=True)
            task = make_task(
                "interpolate", Interpolate(strip, film.interpolate), inputs=inputs,
                components=(RIFE_COMPONENT,) if film.interpolate == "rife" else (),
                numerics=self.planner.numerics.get("interpolate", ()), extension="mkv", label=shot.id,
                cost=10 * self.planner.picture_cost(end - first), near=piece.key,
            )  # fmt: skip
            self.tasks[shot.id].append(self.planner.add(task))
            pieces.append(Piece(task.key, first, end))
            first = end
        return Reel(tuple(pieces), Fraction(1))

    def _add(self, shot: FilmShot, request: Any, inputs: tuple[str, ...], *, num_frames: int) -> str:
        task = make_task(
            "assemble", request, inputs=inputs, extension="jsonl", label=shot.id,
            cost=self.planner.picture_cost(num_frames),
        )  # fmt: skip
        self.tasks[shot.id].append(task.key)
        return self.planner.add(task)
