"""How long each stand-in takes, and what it does: it sleeps in steps, as a real stage computes in steps."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from pipelines.stage import Artifact, Progress, Result

SECONDS = {"encode": 0.2, "denoise": 2.0, "decode": 0.5, "assemble": 0.3}
STEPS = 10
NUM_BYTES = int(os.environ.get("STAND_IN_BYTES", "1000"))  # of each output


def stand_in(stage: str) -> type:
    """The class `Stage` of a module of stand-ins."""

    class StandIn:
        def __init__(self, model: str = "", components: Sequence[str] = (), **numerics: Any) -> None:
            self.seconds = SECONDS[stage]

        def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
            start = time.monotonic()
            for step in range(STEPS):
                time.sleep(max(0.0, start + (step + 1) * self.seconds / STEPS - time.monotonic()))
                progress.advance(step + 1, STEPS)
            return Result(os.urandom(16) * (NUM_BYTES // 16))

    return StandIn
