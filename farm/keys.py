"""Content keys: the hash of everything that decides a task's output and of nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from farm.task import Request, Roll, Stage, Task

STAGE_VERSIONS: dict[str, int] = {  # raise one when its code changes what it puts out
    "EncodeText": 2, "SourceFile": 1, "EncodeFrames": 2, "EmbedFrames": 1, "Denoise": 3, "Decode": 3,
    "Interpolate": 1, "WriteClip": 2, "WriteStills": 2, "MixFrames": 2, "MeasureColour": 1, "SolveColour": 1,
    "MeasureSeams": 2, "JoinClips": 1, "Roll": 1, "ChooseRoll": 1, "TakeRoll": 1,
}  # fmt: skip


def hash_json(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `value` (sorted keys, no blanks, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def kind_of(request: Request) -> str:
    """`Decode`, or `Roll of Decode`."""
    name = type(request).__name__
    return f"{name} of {type(request.request).__name__}" if isinstance(request, Roll) else name


def parts_of(
    stage: Stage,
    request: Request,
    inputs: tuple[str, ...],
    components: tuple[tuple[str, str], ...],
    numerics: tuple[tuple[str, Any], ...],
) -> dict[str, Any]:
    """The parts of a key in clear, as they are kept beside the artifact."""
    kind = kind_of(request)
    return {
        "stage": stage,
        "kind": kind,
        "version": [STAGE_VERSIONS[name] for name in kind.split(" of ")],
        "parameters": asdict(request),
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
