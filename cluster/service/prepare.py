"""A storyboard that came over the network: read, checked against a server's limits, planned. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.prepare import plan_job
from farm.document import Document, dotted, read_document, suggest
from farm.errors import InputError, Problem
from farm.film.film import container_of
from farm.film.resolve import resolve
from farm.film.storyboard import names_in, parse_storyboard
from farm.models.checkpoint import Checkpoint
from farm.plan.plan import Plan
from farm.pools.pools import Pool
from farm.service.limits import Limits, over_limits, too_large
from farm.store.jobs import Job


@dataclass(frozen=True)
class Prepared:
    """A storyboard that has been read, checked and planned."""

    job: Job
    plan: Plan
    files: dict[str, Path]
    warnings: tuple[Problem, ...]
    container: str
    model: str  # as the storyboard names it


def prepare(
    raw: bytes, uploads: Mapping[str, Path], *, models: Mapping[str, Checkpoint],
    pools: Mapping[str, Pool], limits: Limits,
) -> Prepared:  # fmt: skip
    """Read, check and plan a storyboard.

    Args:
        uploads: pictures and LoRAs of the request, by the name that the storyboard uses.
        models: that this server offers, by the name that callers use.
    Raises:
        InputError: with all faults; models and files must be known to this server or come with the request.
    """
    if len(raw) > limits.max_storyboard_bytes:
        raise InputError(f"a storyboard must have at most {limits.max_storyboard_bytes} bytes, got {len(raw)}")
    document = read_document(raw, file="storyboard")
    if told := _unknown_names(document, uploads, models, limits):
        raise InputError(*told)
    draft = parse_storyboard(raw, file="storyboard", uploads=uploads)
    name = draft.top.model if draft.top else "builtin"
    if name not in models:
        raise InputError(Problem(f"model must be one of {', '.join(models)}, got {name!r}", "model"))
    others = {n.value: models[n.value] for n in names_in(document.data) if n.what == "model"}
    fps = (draft.top.fps if draft.top else None) or models[name].card.fps
    if told := too_large(draft.shots, fps, limits):  # before anything is cut into chunks
        raise InputError(*told)
    try:
        resolved = resolve(draft, models[name], others=others)
    except InputError as e:
        raise InputError(*(replace(p, file="") for p in e.problems)) from None
    film = resolved.film
    if told := over_limits(film, limits):
        raise InputError(*told)
    container = container_of("", film.codec)
    warnings = tuple(replace(w, file="") for w in resolved.warnings)
    text = raw.decode("utf-8-sig")
    job, plan, _ = plan_job(film, resolved.models, text, pools, container=container, warnings=warnings)
    return Prepared(job, plan, resolved.files, warnings, container, name)


def _unknown_names(
    document: Document, uploads: Mapping[str, Path], models: Mapping[str, Checkpoint], limits: Limits
) -> list[Problem]:
    """Models that this server does not offer, and files that did not come with the request."""
    found: list[Problem] = []
    used = list(names_in(document.data))
    num_files = sum(name.what != "model" for name in used)
    if num_files > limits.max_images:
        most = f"must be at most {limits.max_images} on this server, got {num_files}"
        return [Problem(f"the number of times that pictures are used {most}", "shots")]
    for place, name, what in used:
        is_model = what == "model"
        if name in (models if is_model else uploads):
            continue
        if is_model:
            must = f"be one of {', '.join(models)}"
        else:
            must = "name a file of this request" + (f": {', '.join(uploads)}" if uploads else ", which has none")
        near = suggest(name, models if is_model else uploads)
        found.append(document.problem(place, f"{dotted(place)} must {must}, got {name[:100]!r}{near}"))
    return [replace(p, file="") for p in found]
