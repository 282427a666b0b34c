"""The nodes of a film's graph: what each stage is asked to do, and the record of each try.

Requests hold plain values only, because they are hashed into content keys and cross processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Stage = Literal["encode", "denoise", "decode", "interpolate", "upscale", "assemble"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Outcome = Literal["succeeded", "failed", "canceled", "interrupted"]
# Why an attempt failed; `died`: its process ended; `overflow`: what it put out was not finite.
Cause = Literal["", "error", "input", "memory", "died", "overflow"]


SPECIAL_TOKENS = 2  # at most, that a tokenizer adds to a prompt
Settings = tuple[tuple[str, Any], ...]  # a family's own constants, from the checkpoint's JSON files and its card


@dataclass(frozen=True)
class SourceFile:
    """A picture or a LoRA of the author's, by its bytes. It is put into the store when a film is submitted."""

    sha256: str


@dataclass(frozen=True)
class Known:
    """Frames that a chunk is given. They come as a task's last inputs, in this order.

    First come pictures or stretches of decoded frames that the chunk begins with, then pictures in between, a picture
    that it ends on, and pictures of what shall be seen in it.
    """

    width_px: int
    height_px: int
    num_first: int = 0  # frames that the chunk begins with: the last ones of its inputs' frames
    num_inputs: int = 0  # that these come from
    first_fit: str = ""  # cover | contain | stretch: they come from a picture; `refuse` has been checked, and stretches
    keyframes: tuple[tuple[int, str], ...] = ()  # pictures in between: (frame of the chunk, fit), by frame
    last_fit: str = ""  # the same of the picture that the chunk ends on; empty where there is none
    reference_fits: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodeText:
    """Turn one prompt into embeddings and whatever else the model takes of a text."""

    family: str
    prompt: str
    max_tokens: int
    known: Known | None = None  # of text encoders that look at the first frame
    settings: Settings = ()
    keep_chars: int = 0  # at its end, that are kept where it is longer than the encoder reads: style and marks

    @property
    def may_be_cut(self) -> bool:
        """Whether it may be longer than the encoder reads: a token has a byte at least, special ones apart."""
        return len(self.prompt.encode()) + SPECIAL_TOKENS > self.max_tokens


@dataclass(frozen=True)
class EncodeFrames:
    """Turn known frames into what the autoencoder makes of them: latents, or a condition for a whole chunk."""

    family: str
    known: Known
    num_frames: int = 0  # of the chunk, where the condition is as long as it
    seed: int | None = None  # of families that draw a sample
    settings: Settings = ()


@dataclass(frozen=True)
class EmbedFrames:
    """Turn known frames into the embeddings of an image encoder."""

    family: str
    known: Known


@dataclass(frozen=True)
class Slice:
    """A part of a latent that the model predicts by itself, and which of the task's prompts serve it."""

    first_latent: int
    num_latents: int
    prompt: int | None  # index among the inputs; None for models that read no text
    negative: int | None  # None without guidance


@dataclass(frozen=True)
class Lora:
    """Low-rank changes to weights, by the bytes of their file, which is among a task's last inputs."""

    sha256: str
    weight: float
    targets: tuple[str, ...]  # components: transformer, transformer_2


@dataclass(frozen=True)
class Denoise:
    """Generate latents (1, channels, latent frames, rows, columns), float32, as the family's model knows them.

    Those of one chunk have one slice; a shot in `blend` has one for each of its chunks, denoised together.
    """

    family: str
    mode: str  # what the model is given besides text: text | image | first_last | frames | latents | reference
    latent_shape: tuple[int, ...]
    steps: int
    guidance: float
    guidance_low: float  # of the low-noise expert; equal to `guidance` where there is one transformer
    seed: int
    slices: tuple[Slice, ...]
    fps: float = 0.0  # of models that are told
    context_latents: int = 0  # clean latent frames at the start, the last ones of its last input
    noise: str = "independent"  # or free: further slices get that of the first, shuffled
    anchor: bool = False  # every slice sees the context's first latent frame, a picture
    shift: bool = False  # the grid of slices moves from step to step
    loras: tuple[Lora, ...] = ()  # in the order of the inputs that follow all others
    settings: Settings = ()


@dataclass(frozen=True)
class Decode:
    """Turn a stretch of a stream of latents into frames, losslessly coded.

    `spans` says what each input adds to the stretch: (latent frames to skip, to take). The first `halo_latents` of the
    stretch are there only so that the causal decoder knows what came before.
    """

    family: str
    spans: tuple[tuple[int, int], ...]
    halo_latents: int
    is_start: bool  # the stretch begins where its stream does, so its first latent frame stands for fewer frames
    skip_frames: int  # of those that follow the halo
    num_frames: int
    settings: Settings = ()


@dataclass(frozen=True)
class Strip:
    """Frames of one shot, taken from the frames of `num_pieces` inputs, one after another.

    Frame j of the strip's rate shows the time of frame j * step of the inputs' rate. Where the shot's colours are
    matched, its `SolveColour` is one more input after them.
    """

    first_frame: int  # of the shot, at the strip's rate
    num_frames: int
    source_frame: int  # of the shot, at the inputs' rate: the first of theirs
    num_pieces: int
    step: str  # as a fraction, "1/3"
    chunk_starts: tuple[int, ...] = ()  # of the chunks in it, at the inputs' rate; empty where colours stay as they are
    first_chunk: int = 0  # the correction that the first of them has


@dataclass(frozen=True)
class Interpolate:
    """Make the frames between frames, losslessly coded: by RIFE or optical flow."""

    strip: Strip
    method: str  # rife | flow


@dataclass(frozen=True)
class WriteClip:
    """Write a strip as a clip."""

    strip: Strip
    fps: str  # delivered, as a fraction, "24/1"
    width_px: int
    height_px: int
    codec: str
    crf: int


@dataclass(frozen=True)
class WriteStills:
    """Write the same frames as a zip of PNG files 000000.png ..., numbered from the first of them."""

    strip: Strip
    width_px: int
    height_px: int


@dataclass(frozen=True)
class MixFrames:
    """The frames in which one shot becomes the next, losslessly coded, at the delivered size and rate.

    The inputs are those of the shot that leaves, then those of the one that comes; both strips are equally long.
    """

    kind: str
    leaves: Strip
    comes: Strip
    fps: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class MeasureColour:
    """Measure by how much the colours of a shot step at one join, beyond how they move around it: JSON."""

    join: int  # model frame, the first one after it
    inner: tuple[int, ...]  # and those near it at which latent frames begin inside chunks
    source_frame: int  # model frame with which the inputs' frames begin


@dataclass(frozen=True)
class SolveColour:
    """Find by how much to move the colours of each chunk so that its joins do not show: JSON, one correction each.

    The inputs are the measures of the shot's joins, in order, and before them the solution of the shot that it goes on
    from, if that has one: its last correction is then the first one here, for frames that it had generated.
    """

    joins: tuple[int, ...]  # the correction that follows each measured join
    num_corrections: int
    goes_on: bool


@dataclass(frozen=True)
class MeasureSeams:
    """Measure how visible a shot's joins are and how it begins: JSON lines, one a seam.

    All numbers are model frames of the shot: the first one after a join, or after the start of a latent frame inside a
    chunk. The inputs are those of the end of the shot before, if that is looked at, then those of the shot.
    """

    joins: tuple[int, ...]
    starts: tuple[tuple[int, str], ...]  # (0, "cut" or "join") where the shot follows another without a transition
    inner: tuple[int, ...]
    before: Strip | None
    shot: Strip


@dataclass(frozen=True)
class Roll:
    """One more try at a chunk, with another seed: not needed, and empty, where the one before is good enough.

    Its last input is the measure of the join that the one before makes.
    """

    request: Denoise | Decode | MeasureSeams
    max_seam: float


@dataclass(frozen=True)
class ChooseRoll:
    """Say which try at a chunk is used, from the measures of all: JSON with `roll`."""

    max_seam: float


@dataclass(frozen=True)
class TakeRoll:
    """What the chosen try made. The inputs are the choice, then the outputs of all tries."""


@dataclass(frozen=True)
class JoinClips:
    """Join clips by copying packets, with one chapter per shot and the film's metadata."""

    container: str
    chapters: tuple[tuple[str, int], ...]  # (shot id, delivered frames)
    fps: str
    metadata: tuple[tuple[str, str], ...]


Request = (
    EncodeText | SourceFile | EncodeFrames | EmbedFrames | Denoise | Decode | Interpolate | WriteClip | WriteStills
    | MixFrames | MeasureColour | SolveColour | MeasureSeams | JoinClips | Roll | ChooseRoll | TakeRoll
)  # fmt: skip


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
    near: str = ""  # key of the task whose replica, if it is free, has what this one can go on with


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
    cause: Cause = ""
    fence: int = 0  # of the lease under which it was made
    model: str = ""
    price_per_hour: float = 0.0  # of its replica, in whatever currency the pools file has
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


Numerics = Mapping[str, tuple[tuple[str, Any], ...]]  # stage to what its pools fix: dtype and the like
