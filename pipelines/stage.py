"""What every stage is: an object that holds loaded components and turns a request and its inputs into one artifact.

Artifacts are bytes of a public format (safetensors, Matroska, MP4, ZIP), so that a stage reads the same thing whether
its input comes from the process before it, from the store, or from a notebook.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from farm.errors import TaskCanceled

Artifact = bytes | Path


@dataclass
class Progress:
    """What a running task tells and is told; read and written by other threads."""

    step: int = 0
    num_steps: int = 1
    preview: bytes = b""  # PNG
    canceled: bool = False
    first_step_at: float = 0.0  # seconds since the epoch
    share: Any = None  # a `continuity.Share`, where others may predict slices for this task

    def advance(self, step: int, num_steps: int) -> None:
        """Note that `step` steps are done.

        Raises:
            TaskCanceled: somebody asked for it.
        """
        self.step, self.num_steps = step, num_steps
        self.first_step_at = self.first_step_at or (time.time() if step else 0.0)
        if self.canceled:
            raise TaskCanceled(f"canceled after step {step} of {num_steps}")


@dataclass(frozen=True)
class Result:
    """A stage's output. A file lies alone in its folder, which the taker removes; `info` is for the ledger."""

    artifact: Artifact
    info: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """The class `Stage` of each module pipelines.<stage>.

    It is made with a checkpoint's folder, the names of the components that its tasks use, and the stage's numerics.
    `inputs` may fetch an artifact each time it is asked for one.
    """

    def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result: ...


def as_bytes(artifact: Artifact) -> bytes:
    return artifact if isinstance(artifact, bytes) else artifact.read_bytes()


@contextmanager
def as_path(artifact: Artifact, *, suffix: str) -> Iterator[Path]:
    """The artifact as a file: itself where it is one, else a temporary file for the time of the block."""
    if isinstance(artifact, Path):
        yield artifact
        return
    descriptor, name = tempfile.mkstemp(suffix=suffix)
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(artifact)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
