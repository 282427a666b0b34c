"""Plans what happens to decoded frames before they are seen: colours are matched, frames between frames made.

A reel is a shot's frames in the order that clips take them from: as decoded, or at the delivered rate already.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from farm.film.chunks import rate_of
from farm.film.film import Film, FilmShot, latent_starts
from farm.film.interpolation import RIFE_COMPONENT
from farm.keys import make_task
from farm.plan.generate import ShotPlanner
from farm.task import Interpolate, MeasureColour, SolveColour, Strip


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
        lowest = min(bisect_right(self.pieces, begin, key=lambda p: p.end), len(self.pieces) - 1)
        needed = self.pieces[lowest : max(bisect_left(self.pieces, end, key=lambda p: p.first), lowest + 1)]
        fraction = f"{step.numerator}/{step.denominator}"
        strip = Strip(first, num_frames, needed[0].first, len(needed), fraction)
        keys = tuple(p.key for p in needed)
        if self.colour is None:
            return strip, keys
        chunk = bisect_right(self.chunk_starts, needed[0].first) - 1
        beyond = bisect_left(self.chunk_starts, needed[-1].end)
        strip = replace(strip, chunk_starts=self.chunk_starts[chunk:beyond], first_chunk=chunk)
        return strip, (*keys, self.colour)


class ReelPlanner:
    """The reels of shots; `tasks` are those that each of them needs besides what generates it."""

    def __init__(self, planner: ShotPlanner, film: Film) -> None:
        self.planner, self.film = planner, film
        self.step = rate_of(film.fps) / rate_of(film.output_fps)
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
                colour, starts = self._colour(one, pieces)
                self._decoded[one.id] = Reel(pieces, self.step, colour, starts)
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

    def _colour(self, shot: FilmShot, pieces: tuple[Piece, ...]) -> tuple[str | None, tuple[int, ...]]:
        """The task that finds a shot's corrections, and the first frame of each.

        Joins of chunks that were generated one after the other are measured. What goes on from a corrected shot begins
        with that one's last correction, and keeps it where nothing is measured.
        """
        source = self._decoded[shot.continue_from].colour if shot.continue_from else None
        begins = 0 if source is None else 1  # the source's correction comes before those of the chunks
        measures: dict[int, str] = {}
        if shot.color_match and shot.mode == "extend" and shot.context != "none":
            past = self.planner.past[shot.id][-1:]
            (length,) = self.planner.lengths(past) or [0]
            line = (*(Piece(key, -length, 0) for key in past), *pieces)
            _, inner = latent_starts(shot, self.planner.graph.card_of(shot).rule)
            for k, chunk in enumerate(shot.chunks):
                at = chunk.first_frame
                after = bisect_right(line, at, key=lambda p: p.first) - 1
                before = bisect_left(line, at, key=lambda p: p.end)
                if not before <= after < len(line) or not line[before].first < at < line[after].end:
                    continue
                around = line[before : after + 1]
                low, high = (bisect_left(inner, end) for end in (around[0].first + 1, around[-1].end))
                request = MeasureColour(at, inner[low:high], around[0].first)
                measures[k + begins] = self._add(shot, request, tuple(p.key for p in around), num_frames=16)
        if not measures and source is None:
            return None, ()
        starts = tuple(c.first_frame for c in shot.chunks)
        solve = SolveColour(tuple(measures), len(starts) + begins, source is not None)
        key = self._add(shot, solve, (*([source] if source else []), *measures.values()), num_frames=1)
        return key, (*([0] * begins), *starts)

    def _interpolated(self, shot: FilmShot) -> Reel:
        """One task for each decoded piece: the delivered frames whose time lies in it, and in the gap after it."""
        reel, film, pieces, first = self.decoded(shot), self.film, [], 0
        by_rife = film.interpolate == "rife"
        for piece in reel.pieces:
            is_last = piece is reel.pieces[-1]
            end = shot.num_delivered if is_last else min(math.ceil(piece.end / self.step), shot.num_delivered)
            if end <= first:
                continue
            strip, inputs = reel.strip(first, end - first, between=True)
            task = make_task(
                "interpolate", Interpolate(strip, film.interpolate), inputs=inputs,
                components=(RIFE_COMPONENT,) if by_rife else (),
                numerics=self.planner.graph.numerics.get("interpolate", ()) if by_rife else (),
                extension="mkv", label=shot.id,
                cost=10 * self.planner.graph.picture_cost(end - first), near=piece.key,
            )  # fmt: skip
            self.tasks[shot.id].append(self.planner.graph.add(task))
            pieces.append(Piece(task.key, first, end))
            first = end
        return Reel(tuple(pieces), Fraction(1))

    def _add(self, shot: FilmShot, request: Any, inputs: tuple[str, ...], *, num_frames: int) -> str:
        task = make_task(
            "assemble", request, inputs=inputs, extension="jsonl", label=shot.id,
            cost=self.planner.graph.picture_cost(num_frames),
        )  # fmt: skip
        self.tasks[shot.id].append(task.key)
        return self.planner.graph.add(task)
