"""What `request.mode` says happens on rank 1, while the others wait for it in a collective."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

from pipelines.stage import Progress, Result


class Stage:
    def __init__(self, model: str, components: Sequence[str] = (), *, gang: Any, **numerics: Any) -> None:
        self.gang = gang

    def run(self, request: Any, inputs: Sequence[Any], progress: Progress) -> Result:
        if self.gang.rank == 1 and request.mode == "memory":
            raise MemoryError("out of memory on rank 1")
        if self.gang.rank == 1 and request.mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.gang.rank == 0 and request.mode == "leader stands still":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.gang.rank == 1 and request.mode == "stand still":
            os.kill(os.getpid(), signal.SIGSTOP)
        if request.mode == "refuse":
            from farm.errors import InputError

            raise InputError("this cannot be rendered")
        progress.advance(1, 1)
        return Result(b"whole")
