"""One shot of a storyboard with every default filled in from its model's card, and checked against it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from .cards import ModelCard
from .chunks import cut_into_chunks, num_delivered, num_frames_of, round_half_up
from .document import Place, dotted
from .errors import Problem
from .film import FilmImage, FilmShot, FilmTransition, binding_of
from .storyboard import Continuity, Draft, GuidancePair, Shot, TopLevel

MAX_SHAPE_ERROR = 0.01  # of an image's proportions, before it counts as of another shape
MODE_OF_OPTION = {"max_seam": "extend", "rerolls": "extend", "noise": "blend", "anchor": "blend", "shift": "blend"}
T = TypeVar("T")


@dataclass
class Ground:
    """What all shots of a film share, and what is found while they are resolved."""

    draft: Draft
    top: TopLevel
    size: tuple[int, int]
    fps: float
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)
    done: dict[str, FilmShot | None] = field(default_factory=dict)

    def fault(self, place: Place, message: str) -> None:
        self.problems.append(self.draft.document.problem(place, message))


@dataclass(frozen=True)
class Held:
    """The continuity in force for a shot."""

    mode: str
    chunk_frames: int
    overlap_frames: int
    context: str
    color_match: bool
    max_seam: float
    rerolls: int
    noise: str
    anchor: bool
    shift: bool


class ShotResolver:
    """Resolves the shots of one model."""

    def __init__(self, ground: Ground, card: ModelCard, model: int) -> None:
        self.ground, self.card, self.model = ground, card, model
        self.draft, self.top, self.size, self.fps = ground.draft, ground.top, ground.size, ground.fps
        self.fault, self.warnings, self.images, self.done = ground.fault, ground.warnings, ground.images, ground.done

    def shot(self, i: int, shot: Shot) -> FilmShot | None:
        top, card, fps = self.top, self.card, self.fps
        place: Place = ("shots", i)
        held = self.continuity((*place, "continuity"), shot.continuity)
        high, low = self._guidance(place, shot)
        if (
            held is None
            or (shot.prompt is None and shot.prompts is None)
            or (shot.seconds is None and shot.frames is None)
        ):
            return None
        frames = shot.frames or num_frames_of(seconds=shot.seconds or 0, fps=fps)
        mode, chunk_frames, overlap_frames = held.mode, held.chunk_frames, held.overlap_frames
        needed = binding_of(mode, held.context)
        before = self._before(i, shot, needed)
        if before is None:
            return None
        if before or frames > chunk_frames:
            length: Place = (*place, "frames" if shot.frames else "seconds")
            is_given = mode == "extend" or before  # what blend makes by itself needs no context
            if is_given and needed != "none" and needed not in card.contexts:
                self.fault(length, no_context(f"{dotted(place)}.continuity.context", card, needed))
                return None
            if overlap_frames == 0 and needed != "none":
                self.fault(length, f"{dotted(place)}.continuity.overlap_frames must be above 0 in mode {mode}, got 0")
                return None
        if shot.last_image is not None and "first_last" not in card.modes:
            where = (*place, "last_image")
            self.fault(where, f"{dotted(where)} must not be there: {card.name} cannot end on a picture")
        chunks = cut_into_chunks(
            num_frames=frames, chunk_frames=chunk_frames, overlap_frames=overlap_frames, rule=card.rule, context=needed,
            before=before, reach=self._reach(shot),
        )  # fmt: skip
        if held.anchor and mode == "blend" and len(chunks) > 1 and shot.image is None:
            where = (*place, "continuity", "anchor")
            self.fault(where, f"{dotted(where)} must stand beside an image, which every chunk then sees")
        return FilmShot(
            id=shot.id,
            model=self.model,
            prompts=self._prompts(place, shot, frames, {c.first_frame for c in chunks}),
            negative_prompt=first_of(shot.negative_prompt, top.negative_prompt, ""),
            num_frames=frames,
            before_frames=before,
            chunks=tuple(chunks),
            image=self._image(place, shot),
            continue_from=shot.continue_from,
            transition=self._transition(place, shot),
            seed=first_of(shot.seed, top.seed, 0),
            steps=first_of(shot.steps, top.steps, card.steps),
            guidance=high,
            guidance_low=low,
            num_delivered=num_delivered(frames, fps=fps, output_fps=top.output.fps or fps),
            **vars(held),
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
        if source.model != self.model:
            self.fault(place, f"{dotted(place)} must name a shot of the same model, got {shot.continue_from!r}")
            return None
        if context == "none" or source.binding != context:
            self.fault(
                place,
                f"{dotted(place)} must name a shot with the same continuity.context, other than none, got "
                f"{shot.continue_from!r} with {source.binding or 'nothing'} for {context or 'nothing'}",
            )
            return None
        return source.before_frames + source.num_frames

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

    def _guidance(self, place: Place, shot: Shot) -> tuple[float, float]:
        top, card = self.top, self.card
        where = (*place, "guidance") if shot.guidance is not None else ("guidance",)
        asked = shot.guidance if shot.guidance is not None else top.guidance
        if asked is None:
            return card.guidance, first_of(card.guidance_low, card.guidance)
        if not isinstance(asked, GuidancePair):
            return asked, asked
        if card.boundary_ratio is None:
            self.fault(where, f"{dotted(where)} must be one number for {card.name}, which has one expert, got a pair")
        return asked.high, asked.low

    def continuity(self, place: Place, own: Continuity | None) -> Held | None:
        """The continuity in force, checked where it is written.

        None where it does not hold together.
        """
        written = (self.top.continuity or Continuity(), own or Continuity())
        asked = Continuity(**{k: v for c in written for k, v in c.model_dump(exclude_none=True).items()})
        card = self.card
        chunk = first_of(asked.chunk_frames, card.chunk_frames)
        context = first_of(asked.context, next(iter(card.contexts), ""))
        strong = "extend" if {"latents", "frames"} & set(card.contexts) else "blend"
        mode = first_of(asked.mode, strong)
        exact = {"none": 0, "last_frame": 1}.get(context) if mode == "extend" else None
        largest = max((n for n in range(chunk) if n == 0 or card.rule.allows(n)), default=0)
        overlap = first_of(asked.overlap_frames, exact, min(card.overlap_frames, largest))
        name, where, fault = dotted(place), (*place, "overlap_frames"), ""
        key = f"{name}.overlap_frames"
        if not card.rule.allows(chunk):
            where, fault = (*place, "chunk_frames"), off_rule(f"{name}.chunk_frames", card, chunk)
        elif overlap >= chunk:
            fault = f"{key} must be below chunk_frames ({chunk}), got {overlap}"
        elif exact is not None and overlap != exact:
            fault = f"{key} must be {exact} with context {context}, got {overlap}"
        elif exact is None and overlap and not card.rule.allows(overlap):
            fault = off_rule(key, card, overlap)
        if fault and (own is not None or len(place) == 1 or self.model):
            self.fault(where, fault)
        self._check_options(place, written[0] if len(place) == 1 else written[1], asked, mode)
        if fault:
            return None
        max_seam = (asked.max_seam or 0.0) if mode == "extend" else 0.0
        return Held(
            mode, chunk, overlap, context, color_match=first_of(asked.color_match, True), max_seam=max_seam,
            rerolls=first_of(asked.rerolls, 2) if max_seam else 0, noise=first_of(asked.noise, "independent"),
            anchor=bool(asked.anchor), shift=bool(asked.shift),
        )  # fmt: skip

    def _check_options(self, place: Place, told: Continuity, asked: Continuity, mode: str) -> None:
        """Options of one mode must not be asked of a shot in the other, nor of a film that says its mode.

        Args:
            told: what is written at this place.
        """
        name = dotted(place)
        for key, needs in MODE_OF_OPTION.items():
            if (
                getattr(told, key) not in (None, False, "independent")
                and mode != needs
                and (len(place) > 1 or told.mode)
            ):
                self.fault((*place, key), f"{name}.{key} must not be there in mode {mode}: it is of {needs}")
        if told.rerolls and not asked.max_seam:
            self.fault((*place, "rerolls"), f"{name}.rerolls must stand beside max_seam")
        if told.anchor and not self.card.per_token_timesteps:
            message = f"{name}.anchor must not be there: {self.card.name} takes no clean latent frames"
            self.fault((*place, "anchor"), message)


def no_context(name: str, card: ModelCard, context: str) -> str:
    able = " or ".join(card.contexts)
    instead = f"{able} for {card.name}, or none" if able else f"none for {card.name}, which cannot go on from frames"
    return f"{name} must be {instead}, got {context or 'nothing'}"


def off_rule(name: str, card: ModelCard, got: int) -> str:
    return f"{name} must be {card.rule} for {card.name}, got {got}; nearest {are(card.rule.neighbours(got))}"


def are(near: Any) -> str:
    return f"are {near[0]} and {near[1]}" if len(near) == 2 else f"is {near[0]}"


def first_of(*values: T | None) -> T:
    return next(v for v in values if v is not None)
