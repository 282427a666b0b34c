"""Tries at a chunk: which of them are needed, which is chosen, and taking what it made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from farm.task import ChooseRoll, Roll
from pipelines.stage import Artifact, Progress, Result, Stage, as_bytes


def run(stage: Stage, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
    """Let a stage do what it is asked, unless it is a try at a chunk that nobody needs: that one's output is empty."""
    if not isinstance(request, Roll):
        return stage.run(request, inputs, progress)
    if _is_settled(as_bytes(inputs[-1]), request.max_seam):
        return Result(b"", {"not_needed": True})
    return stage.run(request.request, inputs[:-1], progress)


def choose(request: ChooseRoll, measures: Sequence[bytes]) -> bytes:
    """The first try whose join is good enough, else the best: JSON with `roll`."""
    ratios = [_ratio(m) for m in measures if m]  # those that were not needed come last
    good = [i for i, ratio in enumerate(ratios) if ratio <= request.max_seam]
    return json.dumps({"roll": good[0] if good else ratios.index(min(ratios))}).encode()


def _is_settled(measure: bytes, max_seam: float) -> bool:
    """Whether the try before was good enough, or not needed itself."""
    return not measure or _ratio(measure) <= max_seam


def _ratio(measure: bytes) -> float:
    return float(json.loads(measure)["mad_ratio"] or 0.0)
