"""How long each stand-in takes, and what it does: it sleeps in steps, as a real stage computes in steps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from farm.task import MeasureSeams
from pipelines.stage import Artifact, Progress, Result

SECONDS = {"encode": 0.2, "denoise": 2.0, "decode": 0.5, "assemble": 0.3}
SECONDS |= json.loads(os.environ.get("STAND_IN_S", "{}"))
STEPS = 10
CALL_S = 0.2  # of one slice of a blended take, at one step
SEAM = b'{"frame": 0, "kind": "cut", "mad_ratio": 1.0, "warp_ratio": 1.0, "flow_jump": 0.0, "delta_e": 0.0}\n'
NUM_BYTES = int(os.environ.get("STAND_IN_BYTES", "1000"))  # of each output


def stand_in(stage: str) -> type:
    """The class `Stage` of a module of stand-ins."""

    class StandIn:
        def __init__(self, model: str = "", components: Sequence[str] = (), **numerics: Any) -> None:
            self.seconds = float(SECONDS[stage])

        def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
            for i in range(len(inputs)):
                inputs[i]  # a real stage reads them
            start = time.monotonic()
            for step in range(STEPS):
                time.sleep(max(0.0, start + (step + 1) * self.seconds / STEPS - time.monotonic()))
                progress.advance(step + 1, STEPS)
            if isinstance(request, MeasureSeams):
                return Result(SEAM)
            return Result(os.urandom(16) * (NUM_BYTES // 16))

    return StandIn
