"""The continuity in force for a shot: the film's and the shot's own, with defaults from the cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.document import Place, dotted
from farm.film.film import binding_of
from farm.film.ground import Ground, first_of, off_rule
from farm.film.storyboard import Continuity
from farm.models.card import ModelCard

MODE_OF_OPTION = {"max_seam": "extend", "rerolls": "extend", "noise": "blend", "anchor": "blend", "shift": "blend"}


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


def continuity_of(
    ground: Ground,
    place: Place,
    own: Continuity | None,
    *,
    cards: Sequence[ModelCard],
    model: int,
    index_of: Mapping[str, int],
) -> Held | None:
    """The continuity in force, checked where it is written.

    Args:
        own: the shot's, which replaces what the film's says key by key.
        cards: of all models; `model` is the number of the one that begins the shot.
    Returns:
        None where it does not hold together.
    """
    written = (ground.top.continuity or Continuity(), own or Continuity())
    asked = Continuity(**{k: v for c in written for k, v in c.model_dump(exclude_none=True).items()})
    card, number = cards[model], index_of.get(asked.model, model) if asked.model else model
    ahead = cards[number]
    chunk = first_of(asked.chunk_frames, card.chunk_frames)
    context = first_of(asked.context, next(iter(c for c in ahead.contexts if number == model or c != "latents"), ""))
    is_strong = {"latents", "frames"} & set(ahead.contexts) or number != model or not card.blends
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
    if number != model and not fault:
        where = (*place, "model")
        if ahead.rule != card.rule:
            fault = f"{dotted(where)} must generate {card.rule} frames as {card.name}, got {ahead.rule}"
        elif binding_of(mode, context) == "latents":
            fault = f"{dotted(where)} must stand beside mode extend with context frames or last_frame"
    if fault and (own is not None or len(place) == 1 or model):
        ground.fault(where, fault)
    _check_options(ground, card, place, written[0] if len(place) == 1 else written[1], asked, mode)
    if fault:
        return None
    max_seam = (asked.max_seam or 0.0) if mode == "extend" else 0.0
    return Held(
        mode, number, chunk, overlap, context, color_match=first_of(asked.color_match, True), max_seam=max_seam,
        rerolls=first_of(asked.rerolls, 2) if max_seam else 0, noise=first_of(asked.noise, "independent"),
        anchor=bool(asked.anchor), shift=bool(asked.shift),
    )  # fmt: skip


def _check_options(
    ground: Ground, card: ModelCard, place: Place, told: Continuity, asked: Continuity, mode: str
) -> None:
    """Options of one mode must not be asked of a shot in the other, nor of a film that says its mode.

    Args:
        told: what is written at this place.
    """
    name = dotted(place)
    for key, needs in MODE_OF_OPTION.items():
        if getattr(told, key) not in (None, False, "independent") and mode != needs and (len(place) > 1 or told.mode):
            ground.fault((*place, key), f"{name}.{key} must not be there in mode {mode}: it is of {needs}")
    if told.rerolls and not asked.max_seam:
        ground.fault((*place, "rerolls"), f"{name}.rerolls must stand beside max_seam")
    if told.anchor and card.conditioning != "context":
        message = f"{name}.anchor must not be there: {card.name} takes no clean latent frames"
        ground.fault((*place, "anchor"), message)
