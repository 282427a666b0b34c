"""The storyboard: the YAML that a user writes, as a schema. What depends on a model is checked in resolve.py.

Every model refuses unknown keys, and numbers are not read out of text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, StringConstraints

from farm.document import Document, Place, Strict, check, dotted, read_document, suggest
from farm.errors import InputError, Problem

MAX_IMAGE_PX = 64_000_000
WAYS = ("left", "right", "up", "down")
TRANSITIONS = ("cut", "crossfade", "fadeblack", "fadewhite", *(f"{m}{w}" for m in ("wipe", "slide") for w in WAYS))
MAX_SECONDS = 6 * 3600.0  # of one shot
Text = Annotated[str, StringConstraints(max_length=8000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$")]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=8000, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Scale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def _ratio(value: Any) -> Any:
    """24000/1001, as broadcasters write it, as a number."""
    match = re.fullmatch(r"([0-9]{1,6})/([1-9][0-9]{0,3})", value.strip()) if isinstance(value, str) else None
    return int(match[1]) / int(match[2]) if match else value


def _kind(value: Any) -> Any:
    """A transition that is only named."""
    return {"kind": value} if isinstance(value, str) else value


Fps = Annotated[
    float, Field(ge=0.1, le=240, allow_inf_nan=False), BeforeValidator(_ratio, json_schema_input_type=float | str)
]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]


@dataclass(frozen=True)
class Names:
    """Marks keys whose value names a file or a model, which is not part of the storyboard. Everything that must know
    of such keys (uploads, the files that a client sends, what a server allows) asks `names_in`."""

    what: Literal["model", "picture", "lora"]


ModelName = Annotated[str, StringConstraints(min_length=1), Names("model")]
PictureName = Annotated[str, StringConstraints(min_length=1), Names("picture")]
LoraName = Annotated[str, StringConstraints(min_length=1), Names("lora")]


class GuidancePair(Strict):
    """Guidance of the two experts of a model such as Wan2.2-A14B."""

    high: Scale
    low: Scale


class Continuity(Strict):
    """How a shot that is longer than one chunk holds together."""

    mode: Literal["extend", "blend"] | None = None
    chunk_frames: Annotated[int, Field(ge=1, le=10_000)] | None = None
    overlap_frames: Annotated[int, Field(ge=0, le=10_000)] | None = None
    context: Literal["latents", "frames", "last_frame", "none"] | None = None
    model: ModelName | None = None
    """The model of all chunks but the first, where it is another one: a folder or org/name[@revision]."""
    color_match: bool | None = None
    """Take out steps of colour where chunks join (extend); true if not given."""
    max_seam: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = None
    """Make a chunk again whose join is worse than this MAD ratio (extend); off if not given."""
    rerolls: Annotated[int, Field(ge=1, le=8)] | None = None
    """How often at most, with max_seam; 2 if not given."""
    noise: Literal["independent", "free"] | None = None
    """In blend: noise drawn frame by frame, or shuffled from that of the first chunk (FreeNoise)."""
    anchor: bool | None = None
    """In blend: every chunk sees the shot's image."""
    shift: bool | None = None
    """In blend: the grid of chunks moves from step to step."""


class Output(Strict):
    """What is delivered: frame rate, enlargement, codec and its quality."""

    fps: Fps | None = None
    scale: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)] = 1.0
    codec: Literal["h264", "h265", "av1", "vp9", "prores"] = "h264"
    crf: Annotated[int, Field(ge=0, le=63)] | None = None
    interpolate: Literal["rife", "flow", "none"] | None = None
    """How frames between the model's frames are made for another fps; rife where its weights are, else flow."""


class PromptAt(Strict):
    """A prompt that is in force from `at` seconds on."""

    at: Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
    prompt: Prompt


class Transition(Strict):
    """How a shot begins."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z]+$", max_length=32)]
    seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.5


class LoraFile(Strict):
    """Low-rank changes to a model's weights."""

    path: LoraName
    """A safetensors file, relative to the storyboard."""
    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0
    targets: list[Literal["transformer", "transformer_2"]] | None = Field(default=None, alias="for", min_length=1)
    """What it changes; needed for models with two experts."""


class Keyframe(Strict):
    """A picture that is seen at one moment of a shot."""

    at: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
    """Seconds from the shot's beginning, to the nearest frame."""
    image: PictureName


Loras = Annotated[list[LoraFile], Field(max_length=16)]


class Shot(Strict):
    """One continuous take."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]
    """Names the shot; unique in the film."""
    prompt: Prompt | None = None
    """What is seen; the film's style is joined to it."""
    prompts: Annotated[list[PromptAt], Field(min_length=1, max_length=10_000)] | None = None
    """Instead of prompt: prompts that follow each other within the take."""
    seconds: Seconds | None = None
    """Length, to the nearest frame."""
    frames: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Length in frames of the model, instead of seconds."""
    image: PictureName | None = None
    """The picture that the shot begins with (PNG, JPEG or WebP), relative to the storyboard."""
    last_image: PictureName | None = None
    """The picture that the shot ends on."""
    keyframes: Annotated[list[Keyframe], Field(min_length=1, max_length=64)] | None = None
    """Pictures that are seen in between, for models that take some."""
    references: Annotated[list[PictureName], Field(max_length=8)] | None = None
    """Pictures of what shall be seen in the shot, for models that take some."""
    image_fit: Literal["cover", "contain", "stretch", "refuse"] = "refuse"
    """What to do with a picture of another shape."""
    continue_from: str | None = None
    """The id of the shot whose end this one goes on from."""
    transition: Annotated[Transition | None, BeforeValidator(_kind, json_schema_input_type=Transition | str)] = None
    """How the shot begins; not on the first one."""
    model: ModelName | None = None
    """A model of its own: builtin, a folder, or org/name[@revision]."""
    seed: Seed | None = None
    """Of the noise; the film's if not given."""
    steps: Steps | None = None
    """Denoising steps."""
    guidance: Scale | GuidancePair | None = None
    """Classifier-free guidance; a pair for models with two experts."""
    negative_prompt: Text | None = None
    """What guidance leads away from."""
    loras: Loras | None = None
    """Instead of the film's."""
    continuity: Continuity | None = None
    """How the shot holds together when it is longer than one chunk."""


class Storyboard(Strict):
    """A film as its author describes it."""

    title: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f]*$")] = "untitled"
    """Shown in the film's metadata and reports."""
    model: ModelName = "builtin"
    """builtin, a folder in diffusers format, or org/name[@revision] of the hub."""
    size: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")] | None = None
    """WIDTHxHEIGHT of what the model generates; the card's if not given."""
    fps: Fps | None = None
    """Frames a second of what the model generates; the card's if not given."""
    seed: Seed | None = None
    """Of the noise of every shot without one of its own."""
    steps: Steps | None = None
    """Denoising steps; the card's if not given."""
    guidance: Scale | GuidancePair | None = None
    """Classifier-free guidance; the card's if not given; a pair for models with two experts."""
    negative_prompt: Text | None = None
    """What guidance leads away from."""
    loras: Loras | None = None
    """Low-rank changes to the model's weights."""
    style: Text | None = None
    """Joined to every prompt by one space."""
    continuity: Continuity | None = None
    """How shots that are longer than one chunk hold together."""
    output: Output = Output()
    """What is delivered."""
    shots: Annotated[list[Shot], Field(min_length=1, max_length=100_000)]
    """The takes, in order."""


class TopLevel(Storyboard):
    """The storyboard with its shots unread, so that each of them is checked by itself."""

    shots: Annotated[list[Any], Field(min_length=1, max_length=100_000)]


@dataclass(frozen=True)
class Draft:
    """A storyboard as far as it could be read: faulty shots are left out, every fault is in `problems`."""

    document: Document
    top: TopLevel | None
    shots: tuple[tuple[int, Shot], ...] = ()
    problems: list[Problem] = field(default_factory=list)


def read_storyboard(path: Path) -> bytes:
    """Raises:
    InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(Problem(f"the storyboard cannot be read: {e.strerror}", file=str(path))) from None


def parse_storyboard(raw: bytes, *, file: str, uploads: Mapping[str, Path] | None = None) -> Draft:
    """Validate a storyboard against the schema, each shot by itself, and gather all faults.

    Args:
        uploads: the only files that it may name, where it came with a request.
    """
    document = replace(read_document(raw, file=file), uploads=uploads)
    top, problems = check(TopLevel, document.data, document, ())
    problems = [*document.problems, *problems]
    raw_shots = document.data.get("shots") if isinstance(document.data, dict) else None
    shots = []
    for i, item in enumerate(raw_shots if isinstance(raw_shots, list) else []):
        shot, faults = check(Shot, item, document, ("shots", i))
        problems += faults
        if shot is not None:
            shots.append((i, shot))
    if isinstance(raw_shots, list):
        problems += _check_together(raw_shots, document)
    return Draft(document, top, tuple(shots), problems)


def _check_together(raw_shots: list[Any], document: Document) -> list[Problem]:
    """What holds between keys of a shot and between shots; looks at raw values, so that no other fault hides these."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    ids: set[str] = {s["id"] for s in raw_shots if isinstance(s, dict) and isinstance(s.get("id"), str)}

    def fault(i: int, key: str, message: str) -> None:
        place: tuple[str | int, ...] = ("shots", i, key) if key else ("shots", i)
        problems.append(document.problem(place, message))

    for i, shot in enumerate(raw_shots):
        if not isinstance(shot, dict):
            continue
        name = f"shots[{i}]"
        for one, other in (("seconds", "frames"), ("prompt", "prompts"), ("image", "continue_from")):
            if one in shot and other in shot:
                fault(i, other, f"{name} must have {one} or {other}, not both")
        if "seconds" not in shot and "frames" not in shot:
            fault(i, "", f"{name} must have a length: seconds or frames")
        if "prompt" not in shot and "prompts" not in shot and not {"image", "continue_from"} & shot.keys():
            fault(i, "", f"{name} must have a prompt")
        shot_id = shot.get("id")
        if isinstance(shot_id, str):
            if shot_id in seen:
                fault(i, "id", f"{name}.id must be unique, got {shot_id!r}, which is also shots[{seen[shot_id]}]")
            seen.setdefault(shot_id, i)
        source = shot.get("continue_from")
        if isinstance(source, str) and (source not in ids or source == shot_id):
            fault(
                i, "continue_from", f"{name}.continue_from must name another shot, got {source!r}{suggest(source, ids)}"
            )
        asked = _kind(shot.get("transition"))
        kind = asked.get("kind") if isinstance(asked, dict) else None
        if isinstance(kind, str) and kind not in TRANSITIONS:
            fault(
                i, "transition", f"{name}.transition.kind must be a known one, got {kind!r}{suggest(kind, TRANSITIONS)}"
            )
        schedule = shot.get("prompts")
        times: list[Any] = [p.get("at") for p in schedule if isinstance(p, dict)] if isinstance(schedule, list) else []
        is_plain = all(isinstance(t, int | float) and 0 <= t <= MAX_SECONDS for t in times)  # else the schema tells
        if times and is_plain and (times[0] != 0 or any(b <= a for a, b in pairwise(times))):
            fault(i, "prompts", f"{name}.prompts must begin at 0 and go up, got {', '.join(f'{t:g}' for t in times)}")
        for place, value, what in _named(Shot, shot, ("shots", i)):
            if what == "picture" and (reason := _unreadable(document.path_of(value))):
                must = f"{dotted(place)} must be a picture that can be read"
                problems.append(document.problem(place, f"{must}, got {value!r}: {reason}"))
        if i == 0 and "transition" in shot:
            fault(i, "transition", f"{name}.transition must not be there: the first shot has nothing to come from")
    return problems


def _unreadable(path: Path) -> str:
    """Why an image cannot be used, or nothing; reads its header only."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
            width, height = picture.size
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        return str(e).splitlines()[0] or type(e).__name__
    return "" if width * height <= MAX_IMAGE_PX else f"{width}x{height} are more than {MAX_IMAGE_PX} pixels"


class Named(NamedTuple):
    """A place of a storyboard that names a file or a model."""

    place: Place
    value: str
    what: str  # model | picture | lora


def names_in(data: Any) -> Iterator[Named]:
    """Everything in a storyboard that names a model or a file; faults of the schema are passed over."""
    return _named(Storyboard, data, ())


def _named(hint: Any, data: Any, place: Place) -> Iterator[Named]:
    """The names in `data`, which stands at `place` and should be of the type `hint`."""
    if isinstance(hint, type) and issubclass(hint, Strict):
        for key, inner in _keys_with_names(hint) if isinstance(data, dict) else ():
            if key in data:
                yield from _named(inner, data[key], (*place, key))
        return
    marks = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Names)]
    if marks and isinstance(data, str):
        yield Named(place, data, marks[0].what)
        return
    for inner in get_args(hint):
        if get_origin(hint) is not list:
            yield from _named(inner, data, place)
        elif isinstance(data, list):
            for i, item in enumerate(data):
                yield from _named(inner, item, (*place, i))


@cache
def _keys_with_names(model: type[Strict]) -> tuple[tuple[str, Any], ...]:
    """The keys of a part of the schema inside which something is named, with their types."""
    hints = get_type_hints(model, include_extras=True)
    keys = [(info.alias or name, hints[name]) for name, info in model.model_fields.items()]
    return tuple((key, hint) for key, hint in keys if _has_names(hint))


def _has_names(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, Strict):
        return bool(_keys_with_names(hint))
    return any(isinstance(m, Names) for m in getattr(hint, "__metadata__", ())) or any(map(_has_names, get_args(hint)))


def json_schema() -> str:
    """JSON Schema of the storyboard, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Storyboard.model_json_schema()
    return json.dumps(schema, indent=2)
