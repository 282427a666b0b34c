"""From a storyboard to a film: defaults are filled in from the model's card, and everything is checked against it.

All faults are gathered and told at once, each where it stands in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from farm.document import Place, dotted, suggest
from farm.errors import InputError, Problem
from farm.film.chunks import rate_of
from farm.film.film import CRF, Film, FilmShot
from farm.film.ground import Ground, are, first_of
from farm.film.interpolation import default_method, rife_weights
from farm.film.resolve_shot import ShotResolver
from farm.film.storyboard import Draft, Shot, TopLevel
from farm.models.card import ModelCard
from farm.models.checkpoint import Checkpoint
from farm.models.loras import LoraFit

MAX_SIDE_PX = 8192
MAX_DELIVERED_PX = 16384


@dataclass(frozen=True)
class Resolved:
    film: Film
    warnings: tuple[Problem, ...]
    files: dict[str, Path]  # the author's, by their SHA-256
    models: tuple[Checkpoint, ...]  # the film's, then those of single shots
    loras: Mapping[tuple[str, str, str], LoraFit]  # by model, path and transformer


def resolve(
    draft: Draft, checkpoint: Checkpoint | None, *, others: Mapping[str, Checkpoint] | None = None,
    model_problems: tuple[Problem, ...] = (),
) -> Resolved:  # fmt: skip
    """Fill in defaults and check against the cards.

    Args:
        checkpoint: the film's model.
        others: the models that shots name for themselves.

    Raises:
        InputError: with every fault of the storyboard, those found by the schema included.
    """
    problems, film, ground = [*draft.problems, *model_problems], None, None
    models = [checkpoint] if checkpoint else []
    if draft.top is not None and checkpoint is not None:
        named = dict(others or {})
        for other in named.values():
            if _same_as(other) not in map(_same_as, models):
                models.append(other)
        alike = [_same_as(m) for m in models]
        work = _Resolver(draft, draft.top, models, {name: alike.index(_same_as(c)) for name, c in named.items()})
        film, ground = work.film(), work.ground
        problems = [*problems, *ground.problems]
    if problems or film is None or ground is None:
        raise InputError(*sorted(set(problems), key=lambda p: (p.line or 0, p.key)))
    return Resolved(film, tuple(dict.fromkeys(ground.warnings)), ground.files, tuple(models), ground.loras)


def only_shots(film: Film, ids: tuple[str, ...]) -> Film:
    """The film cut down to some of its shots, for a quick look; what they go on from is generated, but not shown.

    Raises:
        InputError: there is no such shot.
    """
    by_id = {shot.id: shot for shot in film.shots}
    for name in ids:
        if name not in by_id:
            message = f"--only must name a shot of the storyboard, got {name!r}{suggest(name, by_id)}"
            raise InputError(Problem(message, "--only"))
    shown: list[FilmShot] = []
    before, last = set(ids), None
    for shot in film.shots:
        if shot.id in ids:  # a transition needs the shot that it comes from
            is_first = not shown or shown[-1].id != last
            shown.append(replace(shot, transition=None) if is_first else shot)
        last = shot.id
    needed = list(ids)
    while needed:
        source = by_id[needed.pop()].continue_from
        if source is not None and source not in before:
            before.add(source)
            needed.append(source)
    unseen = tuple(shot for shot in film.shots if shot.id in before - set(ids))
    return replace(film, shots=tuple(shown), unseen=unseen)


def as_draft(film: Film, models: Sequence[Checkpoint]) -> Film:
    """A quarter of the steps at half the size (as the model allows): other keys, and a film to look at soon."""
    multiple = math.lcm(*(m.card.multiple_px for m in models))
    sides = [film.width_px, film.height_px]
    if not any(m.card.fixed_size for m in models):
        sides = [_half(side, multiple, Fraction(str(film.scale))) for side in sides]
    shots, unseen = (
        tuple(replace(s, steps=max(models[s.model].card.min_steps, s.steps // 4)) for s in some)
        for some in (film.shots, film.unseen)
    )
    return replace(film, width_px=sides[0], height_px=sides[1], shots=shots, unseen=unseen)


def _half(side: int, multiple: int, scale: Fraction) -> int:
    """About half of a side that is delivered with an even number of pixels."""
    able = [n for n in range(multiple, side + 1, multiple) if (n * scale).denominator == 1 and n * scale % 2 == 0]
    return min(able, key=lambda n: abs(n - side / 2))


def _some(ids: Sequence[str]) -> str:
    """The first of many shots."""
    return f"shot {ids[0]}" if len(ids) == 1 else f"shots {', '.join(ids[:3])}{' ...' if len(ids) > 3 else ''}"


class _Resolver:
    """The film around its shots."""

    def __init__(self, draft: Draft, top: TopLevel, models: Sequence[Checkpoint], index_of: Mapping[str, int]) -> None:
        card = models[0].card
        width, height = (int(side) for side in top.size.split("x")) if top.size else card.size
        self.ground = Ground(draft, top, (width, height), top.fps or card.fps)
        self.draft, self.top, self.done, self.fault = draft, top, self.ground.done, self.ground.fault
        self.index = {shot.id: i for i, shot in draft.shots}
        self.index_of, self.models = index_of, models
        self.resolvers = [ShotResolver(self.ground, number, models, index_of) for number in range(len(models))]

    def film(self) -> Film:
        top, ground = self.top, self.ground
        for resolver in self.resolvers:
            self._check_size(resolver.card, *ground.size, top.output.scale)
            self._check_fps(resolver.card)
        self.resolvers[0].continuity(("continuity",), None)
        by_id = {shot.id: (i, shot) for i, shot in self.draft.shots}
        for i, shot in _sources_first(by_id, self._cycle):
            number = self.index_of.get(shot.model, 0) if shot.model else 0
            if shot.model and shot.model not in self.index_of:
                self.done[shot.id] = None  # its model has a fault of its own
            else:
                self.done[shot.id] = self.resolvers[number].shot(i, shot)
        shots = [self.done.get(shot.id) for _, shot in self.draft.shots]
        self._check_transitions(shots)
        for resolver in self.resolvers:
            self._warn_of_unknown_words(resolver)
        return Film(
            title=top.title, model=_label(self.models[0]), width_px=ground.size[0], height_px=ground.size[1],
            fps=ground.fps, seed=top.seed or 0, output_fps=top.output.fps or ground.fps, scale=top.output.scale,
            codec=top.output.codec, crf=self._crf(), interpolate=self._interpolate(), style=top.style or "",
            models=tuple(map(_label, self.models)), shots=tuple(shot for shot in shots if shot),
        )  # fmt: skip

    def _interpolate(self) -> str:
        """The method, where frames lie between the model's; else none."""
        output = self.top.output
        step = rate_of(self.ground.fps) / rate_of(output.fps or self.ground.fps)
        if step.denominator == 1:
            return "none"
        if not rife_weights().is_file() and output.interpolate in (None, "rife"):
            lacking = f"output.interpolate: RIFE's weights are not at {rife_weights()} (farm fetch rife gets them)"
            self.ground.warn(
                ("output", "interpolate"),
                f"{lacking}; machines that interpolate need them" if output.interpolate else
                f"{lacking}; frames are interpolated by optical flow, and differ from those that RIFE makes"
            )  # fmt: skip
        return first_of(output.interpolate, default_method())

    def _check_fps(self, card: ModelCard) -> None:
        if self.ground.fps != card.fps and not card.fps_conditioned:
            self.ground.warn(
                ("fps",),
                f"fps: {card.name} was trained at {card.fps:g} frames a second and is not told another; "
                f"{self.ground.fps:g} only re-times what it generates",
            )

    def _cycle(self, ids: list[str]) -> None:
        place: Place = ("shots", self.index[ids[0]], "continue_from")
        self.fault(place, f"{dotted(place)} must not lead back to its shot, got {' > '.join(ids)}")

    def _check_transitions(self, shots: list[FilmShot | None]) -> None:
        for n, shot in enumerate(shots):
            if shot is None:
                continue
            i, is_last = self.draft.shots[n][0], n + 1 == len(shots)
            follows = not is_last and self.draft.shots[n + 1][0] == i + 1  # faulty shots are not among these
            following = shots[n + 1] if follows else None
            leaves = following.num_transition if following else 0
            if shot.num_transition + leaves > shot.num_delivered:
                own = shot.num_transition > shot.num_delivered or not leaves
                place: Place = ("shots", i if own else i + 1, "transition")
                self.fault(
                    place,
                    f"{dotted(place)} must leave room in shot {shot.id!r}: its transitions take {shot.num_transition} "
                    f"and {leaves} of its {shot.num_delivered} delivered frames",
                )

    def _warn_of_unknown_words(self, resolver: ShotResolver) -> None:
        card, shots_of = resolver.card, dict[str, list[str]]()
        for shot in self.done.values():
            if shot and shot.model == resolver.model:
                for word in dict.fromkeys(w for _, prompt in shot.prompts for w in card.unknown_words(prompt)):
                    shots_of.setdefault(word, []).append(shot.id)
        if shots_of:
            words = "; ".join(f"{word} ({_some(ids)})" for word, ids in list(shots_of.items())[:8])
            more = " ..." if len(shots_of) > 8 else ""
            first = self.index[next(iter(shots_of.values()))[0]]
            self.ground.warn(
                ("shots", first, "prompts" if dict(self.draft.shots)[first].prompts else "prompt"),
                f"{card.name} does not know these words, and leaves them out: {words}{more}; it knows: "
                f"{' '.join(card.vocabulary)}",
            )

    def _check_size(self, card: ModelCard, width: int, height: int, scale: float) -> None:
        if card.fixed_size and (width, height) != card.size:
            native = "{}x{}".format(*card.size)
            self.fault(("size",), f"size must be {native} for {card.name}, which knows no other, got {width}x{height}")
        for side, px in (("width", width), ("height", height)):
            if px % card.multiple_px or px > MAX_SIDE_PX:
                below = min(px, MAX_SIDE_PX) // card.multiple_px * card.multiple_px
                near = [n for n in (below, below + card.multiple_px) if 0 < n <= MAX_SIDE_PX]
                self.fault(
                    ("size",),
                    f"size must have a {side} that is a multiple of {card.multiple_px} for {card.name} and at most "
                    f"{MAX_SIDE_PX}, got {px}; nearest {are(near)}",
                )
                continue
            delivered = Fraction(str(scale)) * px
            if delivered.denominator != 1 or delivered % 2 or not 2 <= delivered <= MAX_DELIVERED_PX:
                self.fault(
                    ("output", "scale"),
                    f"output.scale must give an even {side} of at most {MAX_DELIVERED_PX} px, got {px} x {scale:g} = "
                    f"{float(delivered):g}",
                )

    def _crf(self) -> int:
        output = self.top.output
        if output.codec not in CRF:
            if output.crf is not None:
                self.fault(("output", "crf"), f"output.crf must not be there: {output.codec} has no such setting")
            return 0
        default, largest = CRF[output.codec]
        if output.crf is not None and output.crf > largest:
            self.fault(("output", "crf"), f"output.crf must be at most {largest} for {output.codec}, got {output.crf}")
        return first_of(output.crf, default)


def _sources_first(
    by_id: Mapping[str, tuple[int, Shot]], cycle: Callable[[list[str]], None]
) -> Iterator[tuple[int, Shot]]:
    """Shots, each after the one that it goes on from; those in a cycle are told of once and left out."""
    given: set[str] = set()
    for start in by_id:
        chain: list[str] = []
        at: str | None = start
        while at is not None and at in by_id and at not in given:
            if at in chain:
                cycle([*chain[chain.index(at) :], at])
                given.update(chain)
                chain = []
                break
            chain.append(at)
            at = by_id[at][1].continue_from
        given.update(chain)
        yield from (by_id[shot] for shot in reversed(chain))


def _same_as(model: Checkpoint) -> tuple[str, str]:
    """What two names of one model have in common."""
    return model.folder, model.fingerprint


def _label(model: Checkpoint) -> str:
    """A model's name as films and job ids know it: that of the hub or built in, else the family's, never a path."""
    is_known = model.name == "builtin" or (model.origin and "://" not in model.origin)
    return model.name if is_known else model.card.family
