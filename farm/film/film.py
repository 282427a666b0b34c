"""The film: a storyboard with every default filled in; what decides the job id.

The film decides the job id, so it holds everything that a viewer could notice and nothing of where files lie.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from farm.errors import InputError, Problem
from farm.film.chunks import Chunk
from farm.keys import hash_json
from farm.models.checkpoint import Checkpoint
from farm.models.frame_rule import FrameRule

CODEC_CONTAINERS = {
    "h264": ("mp4", "mkv"), "h265": ("mp4", "mkv"), "av1": ("mp4", "mkv"), "vp9": ("webm", "mkv"), "prores": ("mov",),
}  # fmt: skip
ENCODERS = {  # ffmpeg's, by codec
    "h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "prores": "prores_ks",
}  # fmt: skip
CRF = {"h264": (18, 51), "h265": (20, 51), "av1": (24, 63), "vp9": (24, 63)}  # default, largest


@dataclass(frozen=True)
class FilmImage:
    """A picture by its bytes: where it lies is not part of the film."""

    sha256: str
    extension: str
    fit: str  # cover | contain | stretch | refuse


@dataclass(frozen=True)
class FilmLora:
    """A LoRA by its bytes."""

    sha256: str
    weight: float
    targets: tuple[str, ...]
    extension: str = "safetensors"


@dataclass(frozen=True)
class FilmTransition:
    """How a shot begins; `num_delivered` frames that it shares with the end of the shot before."""

    kind: str
    num_delivered: int


@dataclass(frozen=True)
class FilmShot:
    """One take, ready to be planned. Prompts have the film's style joined to them; lengths are model frames."""

    id: str
    model: int  # which of the film's models
    next_model: int  # and which makes chunks that go on from others
    prompts: tuple[tuple[int, str], ...]  # (first frame that it is in force for, prompt), from frame 0
    negative_prompt: str
    num_frames: int
    before_frames: int  # of its stream that come before it, where it goes on from another shot
    chunks: tuple[Chunk, ...]
    image: FilmImage | None
    last_image: FilmImage | None
    keyframes: tuple[tuple[int, FilmImage], ...]  # (frame, picture)
    references: tuple[FilmImage, ...]
    loras: tuple[FilmLora, ...]
    continue_from: str | None
    transition: FilmTransition | None
    seed: int
    steps: int
    guidance: float
    guidance_low: float
    next_guidance: tuple[float, float]  # the same two of the model that goes on
    num_delivered: int
    mode: str  # of continuity, as are the next; a shot of one chunk does not use them, but they are its author's
    chunk_frames: int
    overlap_frames: int
    context: str
    color_match: bool
    max_seam: float  # 0: chunks are not made again
    rerolls: int
    noise: str
    anchor: bool
    shift: bool

    def prompt_at(self, frame: int) -> str:
        """The prompt in force at a frame."""
        return [prompt for first, prompt in self.prompts if first <= frame][-1]

    @property
    def files(self) -> tuple[FilmImage | FilmLora, ...]:
        """All files of the author's that it is made from."""
        return tuple(_files_in(tuple(getattr(self, f.name) for f in fields(self))))

    @property
    def is_one_stream(self) -> bool:
        """Whether all its latent frames lie in one stream for the decoder."""
        return self.binding == "latents" or (len(self.chunks) < 2 and self.continue_from is None)

    @property
    def binding(self) -> str:
        """What holds its chunks together: a kind of context, or the one long latent of `blend`."""
        return binding_of(self.mode, self.context)

    @property
    def reach_latents(self) -> int:
        """Latent frames that its last denoise task puts out; 0 without chunks of its own."""
        if self.mode == "blend" and self.chunks:
            return self.chunks[-1].first_latent + self.chunks[-1].num_latents - self.chunks[0].first_latent
        return self.chunks[-1].num_latents if self.chunks else 0

    @property
    def num_transition(self) -> int:
        return self.transition.num_delivered if self.transition else 0


@dataclass(frozen=True)
class Film:
    """What one storyboard becomes; sizes in px."""

    title: str
    model: str
    width_px: int
    height_px: int
    fps: float
    seed: int
    output_fps: float
    scale: float
    codec: str
    crf: int
    interpolate: str
    style: str
    models: tuple[str, ...]  # the film's, then those that single shots name
    shots: tuple[FilmShot, ...]
    unseen: tuple[FilmShot, ...] = ()  # not in the film, but shots of it go on from them

    @property
    def delivered_px(self) -> tuple[int, int]:
        return round(self.width_px * self.scale), round(self.height_px * self.scale)

    @property
    def num_delivered(self) -> int:
        """Its shots minus its transitions, in which two shots are seen at once."""
        return sum(shot.num_delivered - shot.num_transition for shot in self.shots)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Film:
        shots = {key: tuple(_shot_from_json(s) for s in data[key]) for key in ("shots", "unseen")}
        return cls(**{**data, **shots, "models": tuple(data["models"])})

    def as_json(self) -> dict[str, Any]:
        made: dict[str, Any] = _as_json(self)
        return made


def _as_json(value: Any) -> Any:
    """As `dataclasses.asdict`, which copies every leaf and takes three times as long (10,000 shots: 0.6 s)."""
    kind = type(value)
    if kind is tuple:
        return tuple(_as_json(item) for item in value)
    if is_dataclass(kind):
        return {name: _as_json(getattr(value, name)) for name in _names_of(kind)}
    return value


@cache
def _names_of(kind: Hashable) -> tuple[str, ...]:
    assert isinstance(kind, type) and is_dataclass(kind)
    return tuple(f.name for f in fields(kind))


def _files_in(value: Any) -> Iterator[FilmImage | FilmLora]:
    if isinstance(value, FilmImage | FilmLora):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _files_in(item)


def latent_starts(shot: FilmShot, rule: FrameRule) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Model frames of a shot at which a latent frame begins: those where chunks join, and those inside chunks."""
    joins = tuple(c.first_frame for c in shot.chunks if 0 < c.first_frame < shot.num_frames)
    inner = []
    for chunk in shot.chunks:
        given = rule.num_frames(chunk.context_latents)
        stream_begins = -shot.before_frames if shot.is_one_stream else chunk.first_frame - given
        first = chunk.first_latent + chunk.context_latents
        starts = [stream_begins + rule.num_frames(n) for n in range(first, chunk.first_latent + chunk.num_latents)]
        inner += [at for at in starts if chunk.first_frame < at < chunk.first_frame + chunk.kept and at > 1]
    return joins, tuple(inner)


def binding_of(mode: str, context: str) -> str:
    return "latents" if mode == "blend" else context


def _shot_from_json(data: Mapping[str, Any]) -> FilmShot:
    images = {k: FilmImage(**data[k]) if data[k] else None for k in ("image", "last_image")}
    transition = data["transition"]
    return FilmShot(
        **{
            **data,
            "prompts": tuple((first, prompt) for first, prompt in data["prompts"]),
            "chunks": tuple(Chunk(**c) for c in data["chunks"]),
            **images,
            "keyframes": tuple((frame, FilmImage(**image)) for frame, image in data["keyframes"]),
            "references": tuple(FilmImage(**r) for r in data["references"]),
            "loras": tuple(FilmLora(**{**one, "targets": tuple(one["targets"])}) for one in data["loras"]),
            "transition": FilmTransition(**transition) if transition else None,
        }
    )


def job_id_of(film: Film, *models: Checkpoint) -> str:
    """The first 16 hex digits of the hash of the film and of its models' fingerprints: the same film, the same job."""
    return hash_json({"film": film.as_json(), "fingerprints": [dict(m.fingerprints) for m in models]})[:16]


def container_of(out_suffix: str, codec: str) -> str:
    """The container of the film: the suffix asked for (with or without a dot), else the codec's first.

    Raises:
        InputError: the codec does not go into that container.
    """
    allowed = CODEC_CONTAINERS[codec]
    asked = out_suffix.removeprefix(".").lower()
    if asked and asked not in allowed:
        raise InputError(
            Problem(
                f"--out must end in {' or '.join('.' + c for c in allowed)} for output.codec {codec}, got {out_suffix}",
                "out",
            )
        )
    return asked or allowed[0]
