"""What a chunk is given besides its prompts: what came before it, and the author's pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from farm.film.chunks import Chunk
from farm.film.film import FilmShot
from farm.models.checkpoint import Checkpoint
from farm.plan.graph import Graph
from farm.task import EmbedFrames, EncodeFrames, Known


@dataclass(frozen=True)
class Given:
    """What a denoise task is given besides its prompts."""

    mode: str = "text"
    inputs: tuple[str, ...] = ()
    context_latents: int = 0
    lead_latents: int = 0
    known: Known | None = None  # where the text encoder looks at the first frame, which it finds in `sources`
    sources: tuple[str, ...] = ()


def given_at_the_start(graph: Graph, shot: FilmShot, k: int, chunk: Chunk) -> Given:
    """What a chunk is given that nothing of the shot comes before: the author's pictures."""
    first = shot.image
    sources = [graph.source(first)] if first else []
    known = Known(graph.film.width_px, graph.film.height_px, len(sources), len(sources), first.fit if first else "")
    return given_of(graph, shot, k, chunk, known, tuple(sources))


def given_of(graph: Graph, shot: FilmShot, k: int, chunk: Chunk, known: Known, sources: tuple[str, ...]) -> Given:
    """What known frames become for the model. The author's other pictures are added to them.

    Args:
        known: what comes before the chunk, which lies in `sources`.
    """
    model, is_last = graph.model_for(shot, chunk), k + 1 == len(shot.chunks)
    card = model.card
    last = shot.last_image if is_last else None
    ahead = 0 if known.first_fit else known.num_first  # frames that the chunk shows before those that it adds
    keys = {
        f - chunk.first_frame + ahead: image for f, image in shot.keyframes
        if chunk.first_frame <= f < chunk.first_frame + chunk.generated
    }  # fmt: skip
    known = replace(
        known, keyframes=tuple((at, image.fit) for at, image in keys.items()), last_fit=last.fit if last else "",
        reference_fits=tuple(r.fit for r in shot.references),
    )  # fmt: skip
    sources = (*sources, *(graph.source(image) for image in (*keys.values(), last, *shot.references) if image))
    begins = "image" if known.first_fit or shot.context == "last_frame" else "frames"
    mode = ("keyframes" if keys else "reference" if shot.references else "first_last" if last
            else begins if known.num_first else "text")  # fmt: skip
    inputs = []
    if card.conditioning == "whole" or (card.conditioning and sources):
        is_sized = card.conditioning == "whole" or card.draws_condition
        encode = EncodeFrames(
            card.family, known, card.rule.num_frames(chunk.num_latents) if is_sized else 0,
            shot.seed + k if card.draws_condition else None, card.settings_of("vae"),
        )  # fmt: skip
        inputs.append(_encode(graph, encode, sources, shot, model, "vae"))
    if "embed" in card.components and sources:
        inputs.append(_encode(graph, EmbedFrames(card.family, known), sources, shot, model, "embed"))
    context = card.rule.num_latents(known.num_first) if known.num_first and card.conditioning == "context" else 0
    lead = card.num_lead(chunk.num_latents, len(shot.references))
    seen = (known, sources) if card.text_sees_image else (None, ())
    return Given(mode, tuple(inputs), context, lead, *seen)


def _encode(graph: Graph, request: Any, inputs: tuple[str, ...], shot: FilmShot, model: Checkpoint, work: str) -> str:
    return graph.model_task(request, "encode", work, inputs=inputs, label=shot.id, shot=shot, model=model, cost=2000)
