"""From a storyboard to a film: defaults are filled in from the model's card, and everything is checked against it.

All faults are gathered and told at once, each where it stands in the file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from .cards import ModelCard
from .checkpoint import HUB_ID, Checkpoint
from .chunks import cut_into_chunks, num_delivered, num_frames_of, round_half_up
from .document import Place, dotted, suggest
from .errors import InputError, Problem
from .film import CRF, Film, FilmImage, FilmShot, FilmTransition, binding_of
from .storyboard import Continuity, Draft, GuidancePair, Shot, TopLevel

MAX_SIDE_PX = 8192
MAX_DELIVERED_PX = 16384
MAX_SHAPE_ERROR = 0.01  # of an image's proportions, before it counts as of another shape


@dataclass(frozen=True)
class Resolved:
    film: Film
    warnings: tuple[str, ...]
    images: dict[str, Path]  # by their SHA-256


def resolve(draft: Draft, checkpoint: Checkpoint | None, *, model_problems: tuple[Problem, ...] = ()) -> Resolved:
    """Fill in defaults and check against the card.

    Raises:
        InputError: with every fault of the storyboard, those found by the schema included.
    """
    unavailable = _unavailable_keys(draft)
    problems, film, warnings, images = [*draft.problems, *model_problems], None, [], {}
    if draft.top is not None and checkpoint is not None:
        work = _Resolver(draft, draft.top, checkpoint.card)
        film = work.film()
        problems, warnings, images = [*problems, *work.problems], work.warnings, work.images
    for feature, places in unavailable.items():
        also = f" (also {', '.join(dotted(p) for p in places[1:4])}{' ...' if len(places) > 4 else ''})"
        message = f"{dotted(places[0])}: {feature} are not available yet{also if places[1:] else ''}"
        problems.append(draft.document.problem(places[0], message))
    if problems or film is None:
        raise InputError(*sorted(set(problems), key=lambda p: (p.line or 0, p.key)))
    return Resolved(film, tuple(warnings), images)


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


def as_draft(film: Film, card: ModelCard) -> Film:
    """A quarter of the steps at half the size (as the model allows): other keys, and a film to look at soon."""
    sides = [_half(side, card.multiple_px, Fraction(str(film.scale))) for side in (film.width_px, film.height_px)]
    shots, unseen = (
        tuple(replace(shot, steps=max(1, shot.steps // 4)) for shot in some) for some in (film.shots, film.unseen)
    )
    return replace(film, width_px=sides[0], height_px=sides[1], shots=shots, unseen=unseen)


def _half(side: int, multiple: int, scale: Fraction) -> int:
    """About half of a side that is delivered with an even number of pixels."""
    able = [n for n in range(multiple, side + 1, multiple) if (n * scale).denominator == 1 and n * scale % 2 == 0]
    return min(able, key=lambda n: abs(n - side / 2))


T = TypeVar("T")
Unavailable = dict[str, list[Place]]  # feature to the places that ask for it


def _unavailable_keys(draft: Draft) -> Unavailable:
    features = {"last_image": "last images", "model": "models of single shots"}
    raw = draft.document.data
    shots = raw.get("shots") if isinstance(raw, dict) else None
    found: Unavailable = {}
    for i, shot in enumerate(shots if isinstance(shots, list) else []):
        for key, feature in features.items():
            if isinstance(shot, dict) and key in shot:
                found.setdefault(feature, []).append(("shots", i, key))
    return found


class _Resolver:
    def __init__(self, draft: Draft, top: TopLevel, card: ModelCard) -> None:
        self.draft, self.top, self.card = draft, top, card
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.images: dict[str, Path] = {}
        self.index = {shot.id: i for i, shot in draft.shots}
        self.done: dict[str, FilmShot | None] = {}

    def fault(self, place: Place, message: str) -> None:
        self.problems.append(self.draft.document.problem(place, message))

    def film(self) -> Film:
        top, card = self.top, self.card
        width, height = (int(side) for side in top.size.split("x")) if top.size else card.size
        self._check_size(width, height, top.output.scale)
        fps = top.fps or card.fps
        if fps != card.fps and not card.fps_conditioned:
            self.warnings.append(
                f"fps: {card.name} was trained at {card.fps:g} frames a second and is not told another; {fps:g} only "
                "re-times what it generates"
            )
        self._continuity(("continuity",), None)
        self.size, self.fps = (width, height), fps
        by_id = {shot.id: (i, shot) for i, shot in self.draft.shots}
        for i, shot in _sources_first(by_id, self._cycle):
            self.done[shot.id] = self._shot(i, shot)
        shots = [self.done.get(shot.id) for _, shot in self.draft.shots]
        self._check_transitions(shots)
        self._warn_of_unknown_words()
        return Film(
            title=top.title, model=_label(card), width_px=width, height_px=height, fps=fps,
            seed=top.seed or 0, output_fps=top.output.fps or fps, scale=top.output.scale, codec=top.output.codec,
            crf=self._crf(), style=top.style or "",
            shots=tuple(shot for shot in shots if shot),
        )  # fmt: skip

    def _shot(self, i: int, shot: Shot) -> FilmShot | None:
        top, card, fps = self.top, self.card, self.fps
        place: Place = ("shots", i)
        held = self._continuity((*place, "continuity"), shot.continuity)
        high, low = self._guidance(place, shot)
        if (
            held is None
            or (shot.prompt is None and shot.prompts is None)
            or (shot.seconds is None and shot.frames is None)
        ):
            return None
        frames = shot.frames or num_frames_of(seconds=shot.seconds or 0, fps=fps)
        mode, chunk_frames, overlap_frames, context = held
        needed = binding_of(mode, context)
        before = self._before(i, shot, needed)
        if before is None:
            return None
        if before or frames > chunk_frames:
            length: Place = (*place, "frames" if shot.frames else "seconds")
            is_given = mode == "extend" or before  # what blend makes by itself needs no context
            if is_given and needed != "none" and needed not in card.contexts:
                self.fault(length, _no_context(f"{dotted(place)}.continuity.context", card, needed))
                return None
            if overlap_frames == 0 and needed != "none":
                self.fault(length, f"{dotted(place)}.continuity.overlap_frames must be above 0 in mode {mode}, got 0")
                return None
        chunks = cut_into_chunks(
            num_frames=frames, chunk_frames=chunk_frames, overlap_frames=overlap_frames, rule=card.rule, context=needed,
            before=before, reach=self._reach(shot),
        )  # fmt: skip
        return FilmShot(
            id=shot.id,
            prompts=self._prompts(place, shot, frames, {c.first_frame for c in chunks}),
            negative_prompt=_first(shot.negative_prompt, top.negative_prompt, ""),
            num_frames=frames,
            before_frames=before,
            chunks=tuple(chunks),
            image=self._image(place, shot),
            continue_from=shot.continue_from,
            transition=self._transition(place, shot),
            seed=_first(shot.seed, top.seed, 0),
            steps=_first(shot.steps, top.steps, card.steps),
            guidance=high,
            guidance_low=low,
            num_delivered=num_delivered(frames, fps=fps, output_fps=top.output.fps or fps),
            mode=mode,
            chunk_frames=chunk_frames,
            overlap_frames=overlap_frames,
            context=context,
        )

    def _reach(self, shot: Shot) -> int | None:
        """Latent frames that the last denoise task holds which a shot goes on from."""
        source = self.done.get(shot.continue_from) if shot.continue_from else None
        while source is not None and not source.chunks and source.continue_from is not None:
            source = self.done.get(source.continue_from)
        return source.reach_latents if source is not None else None

    def _prompts(self, place: Place, shot: Shot, frames: int, starts: set[int]) -> tuple[tuple[int, str], ...]:
        """A shot's prompts by the frame from which they are in force; `starts` are those at which its chunks begin."""
        style = f" {self.top.style}" if self.top.style else ""
        if shot.prompts is None:
            return ((0, f"{shot.prompt}{style}"),)
        found: dict[int, str] = {}
        for k, item in enumerate(shot.prompts):
            first = round_half_up(Fraction(str(item.at)) * Fraction(str(self.fps)))
            if first >= frames:
                where = (*place, "prompts", k, "at")
                length = f"{frames / self.fps:g} s"
                self.fault(where, f"{dotted(where)} must be before the shot's end ({length}), got {item.at:g}")
            elif first in found:
                where = (*place, "prompts", k, "at")
                self.fault(where, f"{dotted(where)} must be at least a frame after the one before, got {item.at:g}")
            found[first] = f"{item.prompt}{style}"
        begins = list(found)
        for k, (first, end) in enumerate(pairwise([*begins, frames])):
            if not any(first <= at < end for at in starts):
                self.warnings.append(
                    f"{dotted((*place, 'prompts', k))}: no chunk begins while it is in force (chunks begin at frames "
                    f"{', '.join(map(str, sorted(starts)[:8])) or 'of another shot'}), so it is not used"
                )
        return tuple(found.items())

    def _before(self, i: int, shot: Shot, context: str) -> int | None:
        """Frames of the stream before a shot that goes on from another; None where that one cannot be gone on from."""
        if shot.continue_from is None:
            return 0
        place: Place = ("shots", i, "continue_from")
        source = self.done.get(shot.continue_from)
        if source is None:
            return None  # it has faults of its own
        if context == "none" or source.binding != context:
            self.fault(
                place,
                f"{dotted(place)} must name a shot with the same continuity.context, other than none, got "
                f"{shot.continue_from!r} with {source.binding or 'nothing'} for {context or 'nothing'}",
            )
            return None
        return source.before_frames + source.num_frames

    def _cycle(self, ids: list[str]) -> None:
        place: Place = ("shots", self.index[ids[0]], "continue_from")
        self.fault(place, f"{dotted(place)} must not lead back to its shot, got {' > '.join(ids)}")

    def _image(self, place: Place, shot: Shot) -> FilmImage | None:
        if shot.image is None:
            return None
        where = (*place, "image")
        if "image" not in self.card.modes:
            self.fault(where, f"{dotted(where)} must not be there: {self.card.name} makes video from text only")
            return None
        from PIL import Image, ImageOps

        path = Path(self.draft.document.file).parent / shot.image
        try:
            raw = path.read_bytes()
            with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG", "WEBP"]) as picture:
                picture.load()
                wide, high, kind = *ImageOps.exif_transpose(picture).size, str(picture.format).lower()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            if not any(p.key == dotted(where) for p in self.draft.problems):  # else the schema has told why
                self.fault(where, f"{dotted(where)} must be a picture that can be read, got {shot.image!r}: {e}")
            return None
        width, height = self.size
        if shot.image_fit == "refuse" and abs(wide * height / (high * width) - 1) > MAX_SHAPE_ERROR:
            self.fault(
                where,
                f"{dotted(where)} must have the film's proportions ({width}x{height}), got {wide}x{high}; or say "
                "image_fit: cover, contain or stretch",
            )
        digest = hashlib.sha256(raw).hexdigest()
        self.images[digest] = path
        return FilmImage(digest, kind, shot.image_fit)

    def _transition(self, place: Place, shot: Shot) -> FilmTransition | None:
        asked = shot.transition
        if asked is None or asked.kind == "cut":
            return None
        num = round_half_up(Fraction(str(asked.seconds)) * Fraction(str(self.top.output.fps or self.fps)))
        if num == 0 and asked.seconds:
            self.warnings.append(f"{dotted((*place, 'transition'))}: {asked.seconds:g} s are less than a frame: a cut")
        return FilmTransition(asked.kind, num) if num else None

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

    def _warn_of_unknown_words(self) -> None:
        prompts = [prompt for shot in self.done.values() if shot for _, prompt in shot.prompts]
        unknown = list(dict.fromkeys(w for p in prompts for w in self.card.unknown_words(p)))
        if unknown:
            words = ", ".join(unknown[:8]) + (" ..." if len(unknown) > 8 else "")
            self.warnings.append(
                f"prompt: {self.card.name} does not know {words}, and leaves it out; it knows: "
                f"{' '.join(self.card.vocabulary)}"
            )

    def _guidance(self, place: Place, shot: Shot) -> tuple[float, float]:
        top, card = self.top, self.card
        where = (*place, "guidance") if shot.guidance is not None else ("guidance",)
        asked = shot.guidance if shot.guidance is not None else top.guidance
        if asked is None:
            return card.guidance, _first(card.guidance_low, card.guidance)
        if not isinstance(asked, GuidancePair):
            return asked, asked
        if card.boundary_ratio is None:
            self.fault(where, f"{dotted(where)} must be one number for {card.name}, which has one expert, got a pair")
        return asked.high, asked.low

    def _continuity(self, place: Place, own: Continuity | None) -> tuple[str, int, int, str] | None:
        """The continuity in force (mode, chunk_frames, overlap_frames, context), checked where it is written.

        None where it does not hold together.
        """
        of_film, card = self.top.continuity or Continuity(), self.card
        asked = own or of_film
        chunk = _first(asked.chunk_frames, of_film.chunk_frames, card.chunk_frames)
        context = _first(asked.context, of_film.context, next(iter(card.contexts), ""))
        strong = "extend" if {"latents", "frames"} & set(card.contexts) else "blend"
        mode = _first(asked.mode, of_film.mode, strong)
        exact = {"none": 0, "last_frame": 1}.get(context) if mode == "extend" else None
        largest = max((n for n in range(chunk) if n == 0 or card.rule.allows(n)), default=0)
        overlap = _first(asked.overlap_frames, of_film.overlap_frames, exact, min(card.overlap_frames, largest))
        name, where, fault = dotted(place), (*place, "overlap_frames"), ""
        key = f"{name}.overlap_frames"
        if not card.rule.allows(chunk):
            where, fault = (*place, "chunk_frames"), _off_rule(f"{name}.chunk_frames", card, chunk)
        elif overlap >= chunk:
            fault = f"{key} must be below chunk_frames ({chunk}), got {overlap}"
        elif exact is not None and overlap != exact:
            fault = f"{key} must be {exact} with context {context}, got {overlap}"
        elif exact is None and overlap and not card.rule.allows(overlap):
            fault = _off_rule(key, card, overlap)
        if fault and (own is not None or len(place) == 1):
            self.fault(where, fault)
        return None if fault else (mode, chunk, overlap, context)

    def _check_size(self, width: int, height: int, scale: float) -> None:
        card = self.card
        for side, px in (("width", width), ("height", height)):
            if px % card.multiple_px or px > MAX_SIDE_PX:
                below = min(px, MAX_SIDE_PX) // card.multiple_px * card.multiple_px
                near = [n for n in (below, below + card.multiple_px) if 0 < n <= MAX_SIDE_PX]
                self.fault(
                    ("size",),
                    f"size must have a {side} that is a multiple of {card.multiple_px} for {card.name} and at most "
                    f"{MAX_SIDE_PX}, got {px}; nearest {_are(near)}",
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
        return _first(output.crf, default)


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


def _no_context(name: str, card: ModelCard, context: str) -> str:
    able = " or ".join(card.contexts)
    instead = f"{able} for {card.name}, or none" if able else f"none for {card.name}, which cannot go on from frames"
    return f"{name} must be {instead}, got {context or 'nothing'}"


def _off_rule(name: str, card: ModelCard, got: int) -> str:
    return f"{name} must be {card.rule} for {card.name}, got {got}; nearest {_are(card.rule.neighbours(got))}"


def _are(near: Any) -> str:
    return f"are {near[0]} and {near[1]}" if len(near) == 2 else f"is {near[0]}"


def _label(card: ModelCard) -> str:
    """A model's name as films and job ids know it: that of the hub or built in, else the family's, never a path."""
    is_known = card.name == "builtin" or (HUB_ID.fullmatch(card.name) and not Path(card.name).is_dir())
    return card.name if is_known else card.family


def _first(*values: T | None) -> T:
    return next(v for v in values if v is not None)
