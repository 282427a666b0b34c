"""What every stage is: an object that holds loaded components and turns a request and its inputs into one artifact.

Artifacts are bytes of a public format (safetensors, Matroska, MP4, ZIP), so that a stage reads the same thing whether
its input comes from the process before it, from the store, or from a notebook.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from farm.errors import Halted, TaskCanceled

Artifact = bytes | Path


@dataclass
class Progress:
    """What a running task tells and is told; read and written by other threads."""

    step: int = 0
    num_steps: int = 1
    preview: bytes = b""  # PNG
    canceled: bool = False
    halted: bool = False  # the same, with the state kept first, by stages that have one
    first_step_at: float = 0.0  # seconds since the epoch
    share: Any = None  # a `continuity.Share`, where others may predict slices for this task
    saved: bytes | None = None  # the state from which to go on (pipelines/checkpoint.py)
    resumed_at: int = 0  # the step that it had reached
    keep: Callable[[int, bytes, bool], None] | None = None  # takes (step, state, whether to wait until it is safe)
    agree: Callable[..., tuple[bool, ...]] | None = None  # of a gang: whether any rank was told each of these
    keep_every_s: float = 0.0
    keep_every_steps: int = 0
    kept_at: float = field(default_factory=time.monotonic)

    def advance(self, step: int, num_steps: int, state: Callable[[], bytes] | None = None) -> None:
        """Note that `step` steps are done.

        Args:
            state: makes what another process needs to go on from here.
        Raises:
            TaskCanceled: somebody asked for it.
            Halted: somebody asked for it, and the state is safe.
        """
        self.step, self.num_steps = step, num_steps
        self.first_step_at = self.first_step_at or (time.time() if step else 0.0)
        canceled, halted = self.canceled, self.halted
        if self.agree is not None:  # all ranks stop after the same step; who is told meanwhile stops after the next one
            canceled, halted = self.agree(canceled, halted)
        if canceled:
            raise TaskCanceled(f"canceled after step {step} of {num_steps}")
        if state is None or self.keep is None or step == num_steps:
            return
        if halted:
            self.keep(step, state(), True)
            raise Halted(f"stopped after step {step} of {num_steps}, which another replica goes on from")
        every_s, every = self.keep_every_s, self.keep_every_steps
        if step and ((every_s and time.monotonic() - self.kept_at >= every_s) or (every and step % every == 0)):
            self.keep(step, state(), False)
            self.kept_at = time.monotonic()


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
