"""The nodes of a film's graph: what each stage is asked to do, and the record of each try.

Requests hold plain values only, because they are hashed into content keys and cross processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Stage = Literal["encode", "denoise", "decode", "interpolate", "upscale", "assemble"]
STAGES: tuple[Stage, ...] = get_args(Stage)
TaskState = Literal["queued", "active", "soft-failed", "completed", "failed", "canceled", "paused"]
Outcome = Literal["succeeded", "failed", "canceled", "interrupted"]


@dataclass(frozen=True)
class EncodeText:
    """Turn one prompt into embeddings (1, max_tokens, dim)."""

    prompt: str
    max_tokens: int


@dataclass(frozen=True)
class Denoise:
    """Generate the latents of one chunk: (1, channels, latent frames, rows, columns), float32, normalised."""

    latent_shape: tuple[int, ...]
    steps: int
    guidance: float
    guidance_low: float  # of the low-noise expert; equal to `guidance` where there is one transformer
    boundary_ratio: float | None
    per_token_timesteps: bool
    seed: int
    context_latents: int = 0  # clean latent frames at the chunk's start, the last ones of its last input


@dataclass(frozen=True)
class Decode:
    """Turn latents into the first `num_frames` frames, losslessly coded."""

    num_frames: int


@dataclass(frozen=True)
class WriteClip:
    """Write delivered frames of one shot as a clip; frame j shows model frame floor(j * fps / output_fps)."""

    num_frames: int  # delivered
    fps: str  # as a fraction, "8/1"
    output_fps: str
    width_px: int
    height_px: int
    codec: str
    crf: int


@dataclass(frozen=True)
class WriteStills:
    """Write the same delivered frames as a zip of PNG files 000000.png ..., numbered within the shot."""

    num_frames: int
    fps: str
    output_fps: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class JoinClips:
    """Join clips by copying packets, with one chapter per shot and the film's metadata."""

    container: str
    chapters: tuple[tuple[str, int], ...]  # (shot id, delivered frames)
    fps: str
    metadata: tuple[tuple[str, str], ...]


Request = EncodeText | Denoise | Decode | WriteClip | WriteStills | JoinClips


@dataclass(frozen=True)
class Task:
    """One unit of work. Everything above the line decides its output and is in its key; the rest is not."""

    key: str
    stage: Stage
    request: Request
    inputs: tuple[str, ...]  # keys, in the order that the stage expects
    components: tuple[tuple[str, str], ...]  # (component, fingerprint) of the weights it uses
    numerics: tuple[tuple[str, Any], ...]
    # ---
    extension: str
    model: str = ""  # folder to load the components from
    label: str = ""  # for people: "opening" or "a red ball ..."
    cost: float = 0.0  # expected run time in arbitrary units, for the longest remaining chain


@dataclass(frozen=True)
class Attempt:
    """One try at a task: a row of the ledger. Times are seconds since the epoch."""

    attempt_id: str
    job: str
    task: str
    stage: Stage
    label: str
    pool: str
    replica: str
    node: str
    queued_at: float
    started_at: float
    ended_at: float
    outcome: Outcome
    reason: str = ""
    run_s: float = 0.0
    load_s: float = 0.0
    gpus: float = 0.0
    peak_memory_bytes: int = 0
    output_bytes: int = 0
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def queue_s(self) -> float:
        return self.started_at - self.queued_at

    @property
    def gpu_s(self) -> float:
        return self.gpus * (self.ended_at - self.started_at)
