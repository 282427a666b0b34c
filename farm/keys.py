"""Content keys: the hash of everything that decides a task's output and of nothing else.

The strings of `FROZEN` enter keys, not the names of classes and fields. So a class or field may be renamed, and an
optional parameter added at the end of its row, without changing a key: a parameter at its frozen default is left out.
A name or default in that table never changes. A change of what a stage puts out raises its version (CHANGELOG.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from farm import task as t
from farm.task import Request, Stage, Task


@dataclass(frozen=True)
class Frozen:
    """How a request, or a record inside one, enters keys: its parameters in the order of the class's fields."""

    kind: str
    required: tuple[str, ...]
    optional: Mapping[str, Any] = field(default_factory=dict)  # with the values that leave them out
    version: int = 0  # of what the stage puts out; records inside requests have none


FROZEN: dict[type, Frozen] = {
    t.EncodeText: Frozen(
        "EncodeText", ("family", "prompt", "max_tokens"), {"known": None, "settings": (), "keep_chars": 0}, 3
    ),
    t.SourceFile: Frozen("SourceFile", ("sha256",), version=1),
    t.EncodeFrames: Frozen("EncodeFrames", ("family", "known"), {"num_frames": 0, "seed": None, "settings": ()}, 3),
    t.EmbedFrames: Frozen("EmbedFrames", ("family", "known"), version=2),
    t.Denoise: Frozen(
        "Denoise", ("family", "mode", "latent_shape", "steps", "guidance", "guidance_low", "seed", "slices"),
        {"fps": 0.0, "context_latents": 0, "noise": "independent", "anchor": False, "shift": False, "loras": (),
         "settings": ()}, 4,
    ),
    t.Decode: Frozen(
        "Decode", ("family", "spans", "halo_latents", "is_start", "skip_frames", "num_frames"), {"settings": ()}, 4
    ),
    t.Interpolate: Frozen("Interpolate", ("strip", "method"), version=2),
    t.WriteClip: Frozen("WriteClip", ("strip", "fps", "width_px", "height_px", "codec", "crf"), version=3),
    t.WriteStills: Frozen("WriteStills", ("strip", "width_px", "height_px"), version=3),
    t.MixFrames: Frozen("MixFrames", ("kind", "leaves", "comes", "fps", "width_px", "height_px"), version=3),
    t.MeasureColour: Frozen("MeasureColour", ("join", "inner", "source_frame"), version=1),
    t.SolveColour: Frozen("SolveColour", ("joins", "num_corrections", "goes_on"), version=1),
    t.MeasureSeams: Frozen("MeasureSeams", ("joins", "starts", "inner", "before", "shot"), version=4),
    t.JoinClips: Frozen("JoinClips", ("container", "chapters", "fps", "metadata"), version=1),
    t.Roll: Frozen("Roll", ("request", "max_seam"), version=1),
    t.ChooseRoll: Frozen("ChooseRoll", ("max_seam",), version=1),
    t.TakeRoll: Frozen("TakeRoll", (), version=1),
    # records inside requests
    t.Known: Frozen(
        "", ("width_px", "height_px"),
        {"num_first": 0, "num_inputs": 0, "first_fit": "", "keyframes": (), "last_fit": "", "reference_fits": ()},
    ),
    t.Slice: Frozen("", ("first_latent", "num_latents", "prompt", "negative")),
    t.Lora: Frozen("", ("sha256", "weight", "targets")),
    t.Strip: Frozen(
        "", ("first_frame", "num_frames", "source_frame", "num_pieces", "step"),
        {"chunk_starts": (), "first_chunk": 0},
    ),
}  # fmt: skip


def hash_json(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `value` (sorted keys, no blanks, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kind_of(request: Request) -> str:
    """`Decode`, or `Roll of Decode`."""
    kind = FROZEN[type(request)].kind
    return f"{kind} of {FROZEN[type(request.request)].kind}" if isinstance(request, t.Roll) else kind


def _rows(kind: type, frozen: Frozen) -> tuple[tuple[str, str, bool, Any], ...]:
    names: list[tuple[str, bool, Any]] = [(name, False, None) for name in frozen.required]
    names += [(name, True, default) for name, default in frozen.optional.items()]
    return tuple((f.name, *row) for f, row in zip(fields(kind), names, strict=True))


# For each field: its name here, its name in keys, whether it may be left out, and at which value.
PARAMETERS = {kind: _rows(kind, frozen) for kind, frozen in FROZEN.items()}


RECORDS = FROZEN.keys()


def parameters_of(record: Any) -> dict[str, Any]:
    """A request's parameters as they enter its key."""
    return {
        name: _plain(value)
        for here, name, is_optional, default in PARAMETERS[type(record)]
        if not ((value := getattr(record, here)) == default and is_optional)
    }


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is tuple:  # JSON writes it as a list; only one that may hold records is gone through
        return [_plain(item) for item in value] if value and type(value[0]) in RECORDS else value
    return parameters_of(value) if kind in FROZEN else value


def parts_of(
    stage: Stage,
    request: Request,
    inputs: tuple[str, ...],
    components: tuple[tuple[str, str], ...],
    numerics: tuple[tuple[str, Any], ...],
) -> dict[str, Any]:
    """The parts of a key in clear, as they are kept beside the artifact."""
    kinds = (request, request.request) if isinstance(request, t.Roll) else (request,)
    return {
        "stage": stage,
        "kind": kind_of(request),
        "version": [FROZEN[type(one)].version for one in kinds],
        "parameters": parameters_of(request),
        "inputs": list(inputs),
        "components": dict(components),
        "numerics": dict(numerics),
    }


def parts_of_task(task: Task) -> dict[str, Any]:
    return parts_of(task.stage, task.request, task.inputs, task.components, task.numerics)


def make_task(
    stage: Stage,
    request: Request,
    *,
    extension: str,
    inputs: tuple[str, ...] = (),
    components: tuple[tuple[str, str], ...] = (),
    numerics: tuple[tuple[str, Any], ...] = (),
    model: str = "",
    label: str = "",
    cost: float = 0.0,
    near: str = "",
) -> Task:
    if extension == "json":
        raise ValueError("an artifact must not end in .json, which its record does")
    key = hash_json(parts_of(stage, request, inputs, components, numerics))
    return Task(key, stage, request, inputs, components, numerics, extension, model, label, cost, near)
