"""What `--json` prints, filled in as a command goes on, so that a failure tells what was known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from farm.errors import Problem
from farm.film.film import Film


class Answer:
    """One object, printed as the last line of standard output; faults go to standard error as well."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.started = time.monotonic()
        self.data: dict[str, Any] = {
            "job": None, "status": "failed", "film": None, "width": None, "height": None, "fps": None, "frames": None,
            "seconds": None, "shots": [], "tasks": {"total": 0, "run": 0, "reused": 0, "retried": 0}, "wall_s": 0.0,
            "stage_s": {}, "seams": [], "warnings": [], "errors": [],
        }  # fmt: skip

    def tell_film(self, film: Film, job: str) -> None:
        width, height = film.delivered_px
        shots = [{"id": s.id, "frames": s.num_frames, "chunks": len(s.chunks), "clip": None} for s in film.shots]
        self.data |= {
            "job": job, "width": width, "height": height, "fps": film.output_fps, "frames": film.num_delivered,
            "seconds": film.num_delivered / film.output_fps, "shots": shots,
        }  # fmt: skip

    def warn(self, warnings: Iterable[Problem]) -> None:
        """Tell of what is not as it may have been meant, though nothing is at fault."""
        for warning in warnings:
            self.data["warnings"].append(warning.as_json())
            print(f"farm: warning: {warning}", file=sys.stderr)

    def fail(self, code: int, problems: Sequence[Problem]) -> int:
        statuses = {2: "failed", 3: "failed", 130: "canceled"}
        self.data |= {"status": statuses[code], "errors": [p.as_json() for p in problems]}
        for problem in problems:
            print(f"farm: {problem}", file=sys.stderr)
        return self.finish(code)

    def finish(self, code: int) -> int:
        self.data["wall_s"] = round(time.monotonic() - self.started, 3)
        if self.as_json:
            print(json.dumps(self.data), flush=True)
        return code
