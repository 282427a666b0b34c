"""Plans what is assembled: every shot's clip, the transitions between shots, the film, stills.

A clip is cut where a transition begins or ends and coded in parts; their groups of pictures are closed, so that parts
join by copying packets, into the whole shot and into the film alike.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from farm.film.chunks import rate_of
from farm.film.film import CODEC_CONTAINERS, Film, FilmShot, latent_starts
from farm.keys import make_task
from farm.plan.generate import ShotPlanner
from farm.plan.reels import Piece, Reel, ReelPlanner
from farm.task import JoinClips, MeasureSeams, MixFrames, WriteClip, WriteStills

CLIP_EXTENSION = {codec: containers[0] for codec, containers in CODEC_CONTAINERS.items()}


class ClipPlanner:
    """The tasks that lead from frames to the film; `parts` are the film's clips in order."""

    def __init__(self, planner: ShotPlanner, film: Film, *, stills: bool) -> None:
        self.planner, self.film, self.with_stills = planner, film, stills
        self.reels = ReelPlanner(planner, film)
        self.parts: list[str] = []  # clips of the film, in order
        self.stills: list[str] = []

    def shot(self, i: int) -> tuple[str, list[str]]:
        """Plan a shot's clip and its parts of the film. Returns the clip's key and those of all tasks."""
        shot = self.film.shots[i]
        comes = shot.num_transition
        leaves = self.film.shots[i + 1].num_transition if i + 1 < len(self.film.shots) else 0
        reel = self.reels.delivered(shot)
        tasks = list(self.reels.tasks[shot.id])
        if comes:
            mixed = self._mix(self.film.shots[i - 1], shot)
            tasks += [mixed, *self._deliver(shot, Reel((Piece(mixed, 0, comes),), Fraction(1)), 0, comes)]
        ends = [0, comes, shot.num_delivered - leaves, shot.num_delivered]
        pieces = []
        for first, end in pairwise(ends):
            if end == first:
                continue
            if first == comes and end == ends[2]:  # the body: seen by itself in the film too
                made = self._deliver(shot, reel, first, end - first)
                tasks += made
                pieces.append(made[0])
            else:
                pieces.append(self._clip(shot, reel, first, end - first))
        clip = pieces[0] if len(pieces) == 1 else self.join(pieces, container=self.extension, label=shot.id)
        return clip, list(dict.fromkeys([*tasks, *pieces, clip]))

    def seams(self, i: int) -> str | None:
        """Plan the measure of a shot's joins and of how it begins."""
        shot, before = self.film.shots[i], self.film.shots[i - 1] if i else None
        strip, inputs = self.reels.decoded(shot).strip(0, shot.num_frames, step=Fraction(1))
        leaves, starts = None, []
        if before is not None and not shot.num_transition:
            num = min(2, before.num_frames)  # as many as the flow jump at the cut looks back
            leaves, old = self.reels.decoded(before).strip(before.num_frames - num, num, step=Fraction(1))
            inputs = (*old, *inputs)
            starts = [(0, "join" if shot.continue_from == before.id else "cut")]
        joins, inner = latent_starts(shot, self.planner.graph.card_of(shot).rule)
        if not joins and not starts:
            return None
        request = MeasureSeams(joins, tuple(starts), inner, leaves, strip)
        cost = self.planner.graph.picture_cost(shot.num_frames)
        task = make_task("assemble", request, inputs=inputs, extension="jsonl", label=shot.id, cost=cost)
        return self.planner.graph.add(task)

    @property
    def extension(self) -> str:
        return CLIP_EXTENSION[self.film.codec]

    def join(
        self, clips: list[str], *, container: str, label: str, chapters: tuple[tuple[str, int], ...] = (),
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> str:  # fmt: skip
        request = JoinClips(container, chapters, as_fraction(self.film.output_fps), metadata)
        task = make_task(
            "assemble", request, inputs=tuple(clips), extension=container, label=label, cost=len(clips)
        )  # fmt: skip
        return self.planner.graph.add(task)

    def _deliver(self, shot: FilmShot, reel: Reel, first: int, num: int) -> list[str]:
        """A part of the film: its clip and, where asked for, its stills."""
        clip = self._clip(shot, reel, first, num)
        self.parts.append(clip)
        if not self.with_stills:
            return [clip]
        strip, inputs = reel.strip(first, num)
        request, cost = WriteStills(strip, *self.film.delivered_px), self.planner.graph.picture_cost(num)
        task = make_task("assemble", request, inputs=inputs, extension="zip", label=shot.id, cost=cost)
        self.stills.append(self.planner.graph.add(task))
        return [clip, task.key]

    def _clip(self, shot: FilmShot, reel: Reel, first: int, num: int) -> str:
        film, (strip, inputs) = self.film, reel.strip(first, num)
        request = WriteClip(strip, as_fraction(film.output_fps), *film.delivered_px, film.codec, film.crf)
        cost = self.planner.graph.picture_cost(num) * film.scale
        task = make_task("assemble", request, inputs=inputs, extension=self.extension, label=shot.id, cost=cost)
        return self.planner.graph.add(task)

    def _mix(self, before: FilmShot, shot: FilmShot) -> str:
        num, film = shot.num_transition, self.film
        leaves, old = self.reels.delivered(before).strip(before.num_delivered - num, num)
        comes, new = self.reels.delivered(shot).strip(0, num)
        assert shot.transition is not None
        request = MixFrames(shot.transition.kind, leaves, comes, as_fraction(film.output_fps), *film.delivered_px)
        cost = self.planner.graph.picture_cost(num)
        task = make_task("assemble", request, inputs=(*old, *new), extension="mkv", label=shot.id, cost=cost)
        return self.planner.graph.add(task)


def as_fraction(fps: float) -> str:
    number = rate_of(fps)
    return f"{number.numerator}/{number.denominator}"
