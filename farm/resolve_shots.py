"""One shot of a storyboard with every default filled in from its model's card, and checked against it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from .cards import ModelCard, stock_cards
from .checkpoint import check_safetensors, hash_file
from .chunks import Chunk, cut_into_chunks, num_delivered, num_frames_of, round_half_up
from .document import Place, dotted
from .errors import InputError, Problem
from .film import FilmImage, FilmLora, FilmShot, FilmTransition, binding_of
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
    files: dict[str, Path] = field(default_factory=dict)  # the author's, by their SHA-256
    done: dict[str, FilmShot | None] = field(default_factory=dict)

    def fault(self, place: Place, message: str) -> None:
        self.problems.append(self.draft.document.problem(place, message))


@dataclass(frozen=True)
class Held:
    """The continuity in force for a shot."""

    mode: str
    next_model: int
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

    def __init__(self, ground: Ground, model: int, cards: Sequence[ModelCard], index_of: Mapping[str, int]) -> None:
        self.ground, self.card, self.model = ground, cards[model], model
        self.cards, self.index_of = cards, index_of
        self.draft, self.top, self.size, self.fps = ground.draft, ground.top, ground.size, ground.fps
        self.fault, self.warnings, self.files, self.done = ground.fault, ground.warnings, ground.files, ground.done

    def shot(self, i: int, shot: Shot) -> FilmShot | None:
        top, card, fps = self.top, self.card, self.fps
        place: Place = ("shots", i)
        held = self.continuity((*place, "continuity"), shot.continuity)
        high, low = self._guidance(place, shot, self.card)
        self._check_given(place, shot)
        if held is None or (shot.seconds is None and shot.frames is None):
            return None
        ahead = self.cards[held.next_model]
        frames = shot.frames or num_frames_of(seconds=shot.seconds or 0, fps=fps)
        mode, chunk_frames, overlap_frames = held.mode, held.chunk_frames, held.overlap_frames
        needed = binding_of(mode, held.context)
        before = self._before(i, shot, needed)
        if before is None:
            return None
        if before or frames > chunk_frames:
            length: Place = (*place, "frames" if shot.frames else "seconds")
            is_given = mode == "extend" or before  # what blend makes by itself needs no context
            if is_given and needed != "none" and needed not in ahead.contexts:
                self.fault(length, no_context(f"{dotted(place)}.continuity.context", ahead, needed))
                return None
            if mode == "blend" and not card.blends:
                name = f"{dotted(place)}.continuity.mode"
                self.fault(length, f"{name} must be extend: {card.name} needs a picture to begin with, got blend")
                return None
            if overlap_frames == 0 and needed != "none":
                self.fault(length, f"{dotted(place)}.continuity.overlap_frames must be above 0 in mode {mode}, got 0")
                return None
        chunks = cut_into_chunks(
            num_frames=frames, chunk_frames=chunk_frames, overlap_frames=overlap_frames, rule=card.rule, context=needed,
            before=before, reach=self._reach(shot),
        )  # fmt: skip
        if held.anchor and mode == "blend" and len(chunks) > 1 and shot.image is None:
            where = (*place, "continuity", "anchor")
            self.fault(where, f"{dotted(where)} must stand beside an image, which every chunk then sees")
        if len(chunks) > 1 and mode == "extend" and ahead.contexts == ("last_frame",):
            self.warnings.append(
                f"{dotted(place)}: {ahead.name} goes on from the last frame of a chunk only, so motion may break off "
                f"where its {len(chunks)} chunks join"
            )
        keyframes = self._keyframes(place, shot, frames, chunks, ahead)
        if shot.last_image is not None and chunks:
            self._check_end(place, shot, frames, chunks, ahead)
        if (
            held.next_model != self.model
            and len(chunks) > 1
            and (shot.references or first_of(shot.loras, self.top.loras, []))
        ):
            where = (*place, "continuity", "model")
            self.fault(where, f"{dotted(where)} must not stand beside references or loras, which are one model's")
        whole = card.conditioning == "whole"  # each chunk would begin with the picture
        pictures = {"image": shot.image and whole, "last_image": shot.last_image, "references": shot.references,
                    "keyframes": shot.keyframes}  # fmt: skip
        for key, there in pictures.items():
            if there and mode == "blend" and len(chunks) > 1:
                where = (*place, key)
                self.fault(where, f"{dotted(where)} must not be there in mode blend, whose chunks are made together")
        return FilmShot(
            id=shot.id,
            model=self.model,
            prompts=self._prompts(place, shot, frames, {c.first_frame for c in chunks}),
            negative_prompt=first_of(shot.negative_prompt, top.negative_prompt, ""),
            num_frames=frames,
            before_frames=before,
            chunks=tuple(chunks),
            image=self._image((*place, "image"), shot.image, shot.image_fit),
            last_image=self._image((*place, "last_image"), shot.last_image, shot.image_fit),
            keyframes=keyframes,
            references=self._references(place, shot),
            loras=self._loras(place, shot),
            continue_from=shot.continue_from,
            transition=self._transition(place, shot),
            seed=first_of(shot.seed, top.seed, 0),
            steps=self._steps(place, shot),
            guidance=high,
            guidance_low=low,
            next_guidance=self._guidance(place, shot, ahead) if ahead is not card else (high, low),
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
            return ((0, f"{shot.prompt}{style}" if shot.prompt is not None else ""),)
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

    def _check_given(self, place: Place, shot: Shot) -> None:
        """What a shot gives must be what the model takes, and all that it needs."""
        card, name = self.card, dotted(place)
        for key, mode in (("image", "image"), ("last_image", "first_last"), ("references", "reference"),
                          ("keyframes", "keyframes")):  # fmt: skip
            if getattr(shot, key) and mode not in card.modes and (key != "image" or "first_last" not in card.modes):
                able = kinds_with(card.family, mode)
                instead = f"; a checkpoint of {' or '.join(able)} takes it" if able else ""
                message = f"{name}.{key} must not be there: {card.name} takes {', '.join(card.modes)}{instead}"
                self.fault((*place, key), message)
        if "text" not in card.modes and shot.image is None and shot.continue_from is None:
            able = kinds_with(card.family, "text")
            instead = f", or a model of {' or '.join(able)}" if able else ""
            self.fault(place, f"{name} must have an image, with which {card.name} begins{instead}")
        if card.modes == ("first_last",) and shot.last_image is None:
            self.fault(place, f"{name} must have a last_image: {card.name} goes from one picture to another")
        if (
            not card.is_guided
            and card.components.get("text")
            and first_of(shot.negative_prompt, self.top.negative_prompt, "")
        ):
            self.warnings.append(f"{name}: {card.name} takes no negative prompt, so it is not used")
        reads, is_told = bool(card.components.get("text")), shot.prompt is not None or shot.prompts is not None
        if reads and not is_told:
            self.fault(place, f"{name} must have a prompt")
        if is_told and not reads:
            self.warnings.append(f"{name}: {card.name} reads no text, so its prompt is not used")

    def _check_end(self, place: Place, shot: Shot, frames: int, chunks: Sequence[Chunk], ahead: ModelCard) -> None:
        """The picture that a shot ends on is its last frame, so the last chunk must be shown whole."""
        last, key = chunks[-1], dotted((*place, "frames" if shot.frames else "seconds"))
        if surplus := last.generated - last.kept:
            message = f"{key} must let the shot end where a chunk does, so that it ends on last_image"
            self.fault((*place, "last_image"), f"{message}, got {frames} frames; try frames: {frames + surplus}")
        if last.num_latents < 2:
            self.fault(
                (*place, "last_image"), f"{key} must leave room between the picture and last_image, got {frames}"
            )
        if len(chunks) > 1 and "first_last" not in ahead.modes:
            where = (*place, "last_image")
            self.fault(where, f"{dotted(where)} must not be there: {ahead.name}, which makes the end, takes none")

    def _keyframes(
        self, place: Place, shot: Shot, frames: int, chunks: Sequence[Chunk], ahead: ModelCard
    ) -> tuple[tuple[int, FilmImage], ...]:
        """The pictures in between, by frame."""
        made: dict[int, FilmImage] = {}
        end = frames - (shot.last_image is not None)
        for k, asked in enumerate(shot.keyframes or ()):
            where: Place = (*place, "keyframes", k)
            frame = num_frames_of(seconds=asked.at, fps=self.fps)
            if not 0 < frame < end or frame in made:
                last = f"{(end - 1) / self.fps:g}"
                told = f"{dotted(where)}.at must be above 0, at most {last}, and at another frame than others"
                self.fault((*where, "at"), f"{told}, got {asked.at:g}")
                continue
            if any(c.first_frame <= frame for c in chunks[1:]) and "keyframes" not in ahead.modes:
                self.fault(where, f"{dotted(where)} must not be there: {ahead.name}, which makes that part, takes none")
            if image := self._image((*where, "image"), asked.image, shot.image_fit):
                made[frame] = image
        return tuple(sorted(made.items()))

    def _references(self, place: Place, shot: Shot) -> tuple[FilmImage, ...]:
        """The pictures of what shall be seen, in their order."""
        where, fit = (*place, "references"), "contain" if shot.image_fit == "refuse" else shot.image_fit
        made = [self._image((*where, k), name, fit) for k, name in enumerate(shot.references or ())]
        return tuple(image for image in made if image)

    def _loras(self, place: Place, shot: Shot) -> tuple[FilmLora, ...]:
        where: Place = (*place, "loras") if shot.loras is not None else ("loras",)
        experts = [c for c in self.card.components["denoise"] if c.startswith("transformer")]
        made: list[FilmLora] = []
        for k, asked in enumerate(first_of(shot.loras, self.top.loras, [])):
            name, path = dotted((*where, k)), Path(self.draft.document.file).parent / asked.path
            targets, fault = tuple(asked.targets or experts), ""
            if not self.card.takes_loras:
                fault = f"{name} must not be there: diffusers loads none for {self.card.name}"
            elif asked.targets is None and len(experts) > 1:
                fault = f"{name}.for must say which expert it changes: {', '.join(experts)}, or both"
            elif set(targets) - set(experts):
                fault = f"{name}.for must be of {', '.join(experts)} for {self.card.name}, got {', '.join(targets)}"
            else:
                try:
                    check_safetensors(path, place=f"{name}.path {asked.path!r}")
                except (InputError, OSError) as e:
                    fault = str(e) if isinstance(e, InputError) else f"{name}.path must be a file: {e}"
            if fault:
                self.fault((*where, k), fault)
                continue
            digest = hash_file(path)
            self.files[digest] = path
            if any(one.sha256 == digest and set(one.targets) & set(targets) for one in made):
                self.fault((*where, k), f"{name} must not be there twice; say one weight")
            made.append(FilmLora(digest, asked.weight, targets))
        return tuple(made)

    def _image(self, where: Place, name: str | None, fit: str) -> FilmImage | None:
        """A picture of the author's, looked at and noted."""
        if name is None:
            return None
        from PIL import Image, ImageOps

        path = Path(self.draft.document.file).parent / name
        try:
            raw = path.read_bytes()
            with Image.open(io.BytesIO(raw), formats=["PNG", "JPEG", "WEBP"]) as picture:
                picture.load()
                wide, high, kind = *ImageOps.exif_transpose(picture).size, str(picture.format).lower()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            if not any(p.key == dotted(where) for p in self.draft.problems):  # else the schema has told why
                self.fault(where, f"{dotted(where)} must be a picture that can be read, got {name!r}: {e}")
            return None
        width, height = self.size
        if fit == "refuse" and abs(wide * height / (high * width) - 1) > MAX_SHAPE_ERROR:
            self.fault(
                where,
                f"{dotted(where)} must have the film's proportions ({width}x{height}), got {wide}x{high}; or say "
                "image_fit: cover, contain or stretch",
            )
        digest = hashlib.sha256(raw).hexdigest()
        self.files[digest] = path
        return FilmImage(digest, kind, fit)

    def _transition(self, place: Place, shot: Shot) -> FilmTransition | None:
        asked = shot.transition
        if asked is None or asked.kind == "cut":
            return None
        num = round_half_up(Fraction(str(asked.seconds)) * Fraction(str(self.top.output.fps or self.fps)))
        if num == 0 and asked.seconds:
            self.warnings.append(f"{dotted((*place, 'transition'))}: {asked.seconds:g} s are less than a frame: a cut")
        return FilmTransition(asked.kind, num) if num else None

    def _steps(self, place: Place, shot: Shot) -> int:
        where = (*place, "steps") if shot.steps is not None else ("steps",)
        asked = first_of(shot.steps, self.top.steps, self.card.steps)
        if asked < self.card.min_steps:
            least = self.card.min_steps
            self.fault(where, f"{dotted(where)} must be at least {least} for {self.card.name}, got {asked}")
        return asked

    def _guidance(self, place: Place, shot: Shot, card: ModelCard) -> tuple[float, float]:
        """Of the high-noise and of the low-noise expert; the same where there is one."""
        top = self.top
        where = (*place, "guidance") if shot.guidance is not None else ("guidance",)
        asked = shot.guidance if shot.guidance is not None else top.guidance
        if asked is None:
            return card.guidance, first_of(card.guidance_low, card.guidance)
        if not isinstance(asked, GuidancePair):
            return asked, asked
        if not card.has_two_experts:
            self.fault(where, f"{dotted(where)} must be one number for {card.name}, which has one expert, got a pair")
        return asked.high, asked.low

    def continuity(self, place: Place, own: Continuity | None) -> Held | None:
        """The continuity in force, checked where it is written.

        None where it does not hold together.
        """
        written = (self.top.continuity or Continuity(), own or Continuity())
        asked = Continuity(**{k: v for c in written for k, v in c.model_dump(exclude_none=True).items()})
        card, number = self.card, self.index_of.get(asked.model, self.model) if asked.model else self.model
        ahead = self.cards[number]
        chunk = first_of(asked.chunk_frames, card.chunk_frames)
        context = first_of(
            asked.context, next(iter(c for c in ahead.contexts if number == self.model or c != "latents"), "")
        )
        is_strong = {"latents", "frames"} & set(ahead.contexts) or number != self.model or not card.blends
        strong = "extend" if is_strong else "blend"
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
        if number != self.model and not fault:
            where = (*place, "model")
            if ahead.rule != card.rule:
                fault = f"{dotted(where)} must generate {card.rule} frames as {card.name}, got {ahead.rule}"
            elif binding_of(mode, context) == "latents":
                fault = f"{dotted(where)} must stand beside mode extend with context frames or last_frame"
        if fault and (own is not None or len(place) == 1 or self.model):
            self.fault(where, fault)
        self._check_options(place, written[0] if len(place) == 1 else written[1], asked, mode)
        if fault:
            return None
        max_seam = (asked.max_seam or 0.0) if mode == "extend" else 0.0
        return Held(
            mode, number, chunk, overlap, context, color_match=first_of(asked.color_match, True), max_seam=max_seam,
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
        if told.anchor and self.card.conditioning != "context":
            message = f"{name}.anchor must not be there: {self.card.name} takes no clean latent frames"
            self.fault((*place, "anchor"), message)


def kinds_with(family: str, mode: str) -> list[str]:
    """The pipeline classes of a family that have a mode."""
    return [kind for kind, card in stock_cards().items() if card.family == family and mode in card.modes]


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
