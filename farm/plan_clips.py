"""Plans what is assembled: every shot's clip, the transitions between shots, the film, stills.

A clip is cut where a transition begins or ends and coded in parts; their groups of pictures are closed, so that parts
join by copying packets, into the whole shot and into the film alike.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

from .chunks import FrameRule
from .film import CODEC_CONTAINERS, Film, FilmShot
from .keys import make_task
from .plan_shots import ShotPlanner
from .task import JoinClips, MeasureSeams, MixFrames, Strip, WriteClip, WriteStills

CLIP_EXTENSION = {codec: containers[0] for codec, containers in CODEC_CONTAINERS.items()}


class ClipPlanner:
    """The tasks that lead from frames to the film; `parts` are the film's clips in order."""

    def __init__(self, planner: ShotPlanner, film: Film, *, container: str, stills: bool) -> None:
        self.planner, self.film, self.with_stills = planner, film, stills
        self.parts: list[str] = []  # clips of the film, in order
        self.stills: list[str] = []
        self.step = Fraction(str(film.fps)) / Fraction(str(film.output_fps))

    def shot(self, i: int) -> tuple[str, list[str]]:
        """Plan a shot's clip and its parts of the film. Returns the clip's key and those of all tasks."""
        shot = self.film.shots[i]
        comes = shot.num_transition
        leaves = self.film.shots[i + 1].num_transition if i + 1 < len(self.film.shots) else 0
        tasks = []
        if comes:
            mixed = self._mix(self.film.shots[i - 1], shot)
            tasks += [mixed, *self._deliver(shot, (mixed,), first=0, num=comes, is_mixed=True)]
        ends = [0, comes, shot.num_delivered - leaves, shot.num_delivered]
        pieces = []
        for first, end in pairwise(ends):
            if end == first:
                continue
            strip, inputs = self._strip(shot, first, end - first)
            if first == comes and end == ends[2]:  # the body: seen by itself in the film too
                made = self._deliver(shot, inputs, first=first, num=end - first, source=strip.source_frame)
                tasks += made
                pieces.append(made[0])
            else:
                pieces.append(self._clip(shot, inputs, first=first, num=end - first, source=strip.source_frame))
        clip = pieces[0] if len(pieces) == 1 else self.join(pieces, container=self.extension, label=shot.id)
        return clip, list(dict.fromkeys([*tasks, *pieces, clip]))

    def seams(self, i: int) -> str | None:
        """Plan the measure of a shot's joins and of how it begins."""
        shot, before = self.film.shots[i], self.film.shots[i - 1] if i else None
        frames = self.planner.frames[shot.id]
        inputs, num_before, starts = tuple(frames), 0, []
        if before is not None and not shot.num_transition:
            last = self.planner.frames[before.id][-1]
            inputs, (num_before,) = (last, *inputs), self.planner.lengths([last])
            starts = [(0, "join" if shot.continue_from == before.id else "cut")]
        joins, inner = latent_starts(shot, self.planner.card.rule)
        if not joins and not starts:
            return None
        request = MeasureSeams(joins, tuple(starts), inner, num_before)
        task = make_task(
            "assemble", request, inputs=inputs, extension="jsonl", label=shot.id, cost=self._pixels(shot.num_frames)
        )  # fmt: skip
        return self.planner.add(task)

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
        return self.planner.add(task)

    def _deliver(
        self, shot: FilmShot, inputs: tuple[str, ...], *, first: int, num: int, source: int = 0, is_mixed: bool = False
    ) -> list[str]:
        """A part of the film: its clip and, where asked for, its stills."""
        clip = self._clip(shot, inputs, first=first, num=num, source=source, is_mixed=is_mixed)
        self.parts.append(clip)
        if not self.with_stills:
            return [clip]
        request = WriteStills(first, num, source, **self._look(is_mixed))
        task = make_task(
            "assemble", request, inputs=inputs, extension="zip", label=shot.id, cost=self._pixels(num)
        )  # fmt: skip
        self.stills.append(self.planner.add(task))
        return [clip, task.key]

    def _clip(
        self, shot: FilmShot, inputs: tuple[str, ...], *, first: int, num: int, source: int, is_mixed: bool = False
    ) -> str:
        film = self.film
        request = WriteClip(
            first, num, source, codec=film.codec, crf=film.crf, **self._look(is_mixed)
        )  # fmt: skip
        task = make_task(
            "assemble", request, inputs=inputs, extension=self.extension, label=shot.id,
            cost=self._pixels(num) * film.scale,
        )  # fmt: skip
        return self.planner.add(task)

    def _mix(self, before: FilmShot, shot: FilmShot) -> str:
        num = shot.num_transition
        leaves, old = self._strip(before, before.num_delivered - num, num)
        comes, new = self._strip(shot, 0, num)
        assert shot.transition is not None
        request = MixFrames(shot.transition.kind, num, leaves, comes, **self._look(False))
        task = make_task(
            "assemble", request, inputs=(*old, *new), extension="mkv", label=shot.id, cost=self._pixels(num)
        )
        return self.planner.add(task)

    def _strip(self, shot: FilmShot, first: int, num: int) -> tuple[Strip, tuple[str, ...]]:
        """The decode tasks that hold some delivered frames of a shot, and where those lie in them."""
        wanted_first, wanted_last = int(first * self.step), int((first + num - 1) * self.step)
        keys: list[str] = []
        begins = at = 0
        for key, length in zip(
            self.planner.frames[shot.id], self.planner.lengths(self.planner.frames[shot.id]), strict=True
        ):
            is_last = at + length >= shot.num_frames
            if at <= wanted_last and (at + length > wanted_first or is_last):
                begins = at if not keys else begins
                keys.append(key)
            at += length
        return Strip(first, begins, len(keys)), tuple(keys)

    def _look(self, is_mixed: bool) -> dict[str, Any]:
        """Rates and size; mixed frames have the delivered rate already."""
        output, (width, height) = as_fraction(self.film.output_fps), self.film.delivered_px
        fps = output if is_mixed else as_fraction(self.film.fps)
        return {"fps": fps, "output_fps": output, "width_px": width, "height_px": height}

    def _pixels(self, num_frames: int) -> float:
        return 18 * num_frames * self.film.width_px * self.film.height_px / self.planner.card.spatial_factor**2 / 4


def latent_starts(shot: FilmShot, rule: FrameRule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Model frames of a shot at which a latent frame begins: those where chunks join, and those inside chunks."""
    joins = tuple(c.first_frame for c in shot.chunks if 0 < c.first_frame < shot.num_frames)
    inner = []
    for chunk in shot.chunks:
        given = rule.num_frames(chunk.context_latents)
        stream_begins = -shot.before_frames if shot.is_one_stream else chunk.first_frame - given
        first = chunk.first_latent + chunk.context_latents
        starts = [stream_begins + rule.num_frames(n) for n in range(first, chunk.first_latent + chunk.num_latents)]
        inner += [at for at in starts if chunk.first_frame < at < chunk.first_frame + chunk.kept and at > 1]
    return joins, tuple(inner)


def as_fraction(fps: float) -> str:
    number = Fraction(str(fps))
    return f"{number.numerator}/{number.denominator}"
