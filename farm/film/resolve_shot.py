"""One shot of a storyboard with every default filled in from its model's card, and checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from farm.document import Place, dotted
from farm.film.chunks import Chunk, cut_into_chunks, num_delivered, num_frames_of, rate_of, round_half_up
from farm.film.continuity import Held, continuity_of
from farm.film.film import FilmShot, FilmTransition, binding_of
from farm.film.ground import Ground, first_of
from farm.film.pictures import image_of, keyframes_of, loras_of, references_of
from farm.film.storyboard import Continuity, GuidancePair, Shot
from farm.models.card import ModelCard
from farm.models.cards import stock_cards
from farm.models.checkpoint import Checkpoint


class ShotResolver:
    """Resolves the shots of one model."""

    def __init__(self, ground: Ground, model: int, models: Sequence[Checkpoint], index_of: Mapping[str, int]) -> None:
        self.ground, self.checkpoint, self.model = ground, models[model], model
        self.cards, self.index_of = [m.card for m in models], index_of
        self.card = self.cards[model]
        self.films_own: Held | None = None  # the continuity of shots that say nothing of their own
        self.draft, self.top, self.size, self.fps = ground.draft, ground.top, ground.size, ground.fps
        self.fault, self.warn, self.files, self.done = ground.fault, ground.warn, ground.files, ground.done

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
        needed = binding_of(held.mode, held.context)
        before = self._before(i, shot, needed)
        if before is None:
            return None
        if (before or frames > held.chunk_frames) and not self._can_be_long(place, shot, held, has_past=before > 0):
            return None
        chunks = cut_into_chunks(
            num_frames=frames, chunk_frames=held.chunk_frames, overlap_frames=held.overlap_frames, rule=card.rule,
            context=needed, before=before, reach=self._reach(shot),
        )  # fmt: skip
        if len(chunks) > 1:
            self._check_chunks(place, shot, held, len(chunks))
        keyframes = keyframes_of(self.ground, place, shot, frames, chunks, ahead)
        if shot.last_image is not None and chunks:
            self._check_end(place, shot, frames, chunks, ahead)
        return FilmShot(
            id=shot.id,
            model=self.model,
            prompts=self._prompts(place, shot, frames, {c.first_frame for c in chunks}),
            negative_prompt=first_of(shot.negative_prompt, top.negative_prompt, ""),
            num_frames=frames,
            before_frames=before,
            chunks=tuple(chunks),
            image=image_of(self.ground, (*place, "image"), shot.image, shot.image_fit),
            last_image=image_of(self.ground, (*place, "last_image"), shot.last_image, shot.image_fit),
            keyframes=keyframes,
            references=references_of(self.ground, place, shot),
            loras=loras_of(self.ground, place, shot, self.checkpoint),
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

    def _can_be_long(self, place: Place, shot: Shot, held: Held, *, has_past: bool) -> bool:
        """Whether a shot may have several chunks, or go on from another; what is in the way is told."""
        length: Place = (*place, "frames" if shot.frames else "seconds")
        card, ahead, name = self.card, self.cards[held.next_model], f"{dotted(place)}.continuity"
        needed, fault = binding_of(held.mode, held.context), ""
        is_given = held.mode == "extend" or has_past  # what blend makes by itself needs no context
        if is_given and needed != "none" and needed not in ahead.contexts:
            fault = no_context(f"{name}.context", ahead, needed)
        elif held.mode == "blend" and not card.blends:
            fault = f"{name}.mode must be extend: {card.name} needs a picture to begin with, got blend"
        elif held.overlap_frames == 0 and needed != "none":
            fault = f"{name}.overlap_frames must be above 0 in mode {held.mode}, got 0"
        if fault:
            self.fault(length, fault)
        return not fault

    def _check_chunks(self, place: Place, shot: Shot, held: Held, num_chunks: int) -> None:
        """What cannot stand beside several chunks."""
        ahead, where = self.cards[held.next_model], (*place, "continuity")
        is_blend = held.mode == "blend"
        if held.anchor and is_blend and shot.image is None:
            self.fault(
                (*where, "anchor"),
                f"{dotted((*where, 'anchor'))} must stand beside an image, which every chunk then sees",
            )
        if held.mode == "extend" and ahead.contexts == ("last_frame",):
            self.warn(
                (*where, "context"),
                f"{dotted(place)}: {ahead.name} goes on from the last frame of a chunk only, so motion may break off "
                f"where its {num_chunks} chunks join",
            )
        if held.next_model != self.model and (shot.references or first_of(shot.loras, self.top.loras, [])):
            must = "must not stand beside references or loras, which are one model's"
            self.fault((*where, "model"), f"{dotted((*where, 'model'))} {must}")
        whole = self.card.conditioning == "whole"  # each chunk would begin with the picture
        pictures = {"image": shot.image and whole, "last_image": shot.last_image, "references": shot.references,
                    "keyframes": shot.keyframes}  # fmt: skip
        for key in [k for k, there in pictures.items() if there and is_blend]:
            must = "must not be there in mode blend, whose chunks are made together"
            self.fault((*place, key), f"{dotted((*place, key))} {must}")

    def continuity(self, place: Place, own: Continuity | None) -> Held | None:
        """That in force for a shot of this model; None where it does not hold together."""
        if own is None and self.films_own is not None:
            return self.films_own
        held = continuity_of(self.ground, place, own, cards=self.cards, model=self.model, index_of=self.index_of)
        if own is None:
            self.films_own = held
        return held

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
            first = round_half_up(Fraction(str(item.at)) * rate_of(self.fps))
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
                self.warn(
                    (*place, "prompts", k),
                    f"{dotted((*place, 'prompts', k))}: no chunk begins while it is in force (chunks begin at frames "
                    f"{', '.join(map(str, sorted(starts)[:8])) or 'of another shot'}), so it is not used",
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
            self.warn((*place, "negative_prompt"), f"{name}: {card.name} takes no negative prompt, so it is not used")
        reads, is_told = bool(card.components.get("text")), shot.prompt is not None or shot.prompts is not None
        if reads and not is_told:
            self.fault(place, f"{name} must have a prompt")
        if is_told and not reads:
            self.warn((*place, "prompt"), f"{name}: {card.name} reads no text, so its prompt is not used")

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

    def _transition(self, place: Place, shot: Shot) -> FilmTransition | None:
        asked = shot.transition
        if asked is None or asked.kind == "cut":
            return None
        num = round_half_up(Fraction(str(asked.seconds)) * rate_of(self.top.output.fps or self.fps))
        if num == 0 and asked.seconds:
            self.warn(
                (*place, "transition"),
                f"{dotted((*place, 'transition'))}: {asked.seconds:g} s are less than a frame: a cut",
            )
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


def kinds_with(family: str, mode: str) -> list[str]:
    """The pipeline classes of a family that have a mode."""
    return [kind for kind, card in stock_cards().items() if card.family == family and mode in card.modes]


def no_context(name: str, card: ModelCard, context: str) -> str:
    able = " or ".join(card.contexts)
    instead = f"{able} for {card.name}, or none" if able else f"none for {card.name}, which cannot go on from frames"
    return f"{name} must be {instead}, got {context or 'nothing'}"
