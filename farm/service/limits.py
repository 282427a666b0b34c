"""What a service takes on: limits of one film, quotas of one key, and how often a key may ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from farm.document import Strict, check, read_document
from farm.errors import InputError, Problem
from farm.film.film import Film
from farm.film.storyboard import MAX_IMAGE_PX, Shot

MIB = 2**20
Count = Annotated[int, Field(ge=1)]


class Limits(Strict):
    """What one request and one key may ask of a server. A file of `farm serve --limits` sets some of them."""

    max_body_bytes: Count = 64 * MIB
    """Of a form, whose files go to the disk."""
    max_storyboard_bytes: Count = 2 * MIB
    """And of every request that is no form."""
    max_image_bytes: Count = 20 * MIB
    max_image_px: Annotated[int, Field(ge=1, le=MAX_IMAGE_PX)] = MAX_IMAGE_PX
    max_images: Count = 64
    max_shots: Count = 500
    max_frames: Count = 100_000
    """Frames that the model makes for one film."""
    max_side_px: Count = 2048
    """The longer side of what the model makes."""
    max_delivered_px: Count = 4096
    """The longer side of what is delivered."""
    max_steps: Count = 200
    max_prompt_bytes: Count = 8000
    image_urls: bool = False
    """Whether pictures may be fetched from https addresses."""
    max_queued_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """Seconds of film of one key that have not ended."""
    max_films: Count = 1000
    """Films of one key that have not ended."""
    requests_per_s: Annotated[float, Field(gt=0)] = 50.0
    """Of one key; each of the server's replicas, among which requests are spread, allows its part."""
    max_streams: Count = 200
    """Event streams of one key that are open at once, at each of the server's replicas."""
    gpu_hours_per_day: Annotated[float, Field(gt=0)] | None = None
    """Of one key, by the ledger; days are those of UTC."""
    keep_days: Annotated[float, Field(gt=0)] = 30.0
    """How long a finished video can be had by /v1/videos."""


def load_limits(path: Path) -> Limits:
    """Raises:
    InputError: the file cannot be read; every fault with its line.
    """
    try:
        document = read_document(path.read_bytes(), file=str(path))
    except OSError as e:
        raise InputError(Problem(f"the limits file cannot be read: {e.strerror}", file=str(path))) from None
    found, problems = check(Limits, document.data, document, ())
    problems = [*document.problems, *problems]
    if problems or found is None:
        raise InputError(*problems)
    limits: Limits = found
    return limits


def over_limits(film: Film, limits: Limits) -> list[Problem]:
    """What is too much about one film."""
    shots = (*film.shots, *film.unseen)
    frames = sum(max((c.first_frame + c.kept for c in s.chunks), default=0) for s in shots)
    prompts = [prompt for s in shots for _, prompt in s.prompts]
    found = []

    def most(key: str, what: str, limit: float, got: float) -> None:
        if got > limit:
            found.append(Problem(f"{what} must be at most {limit:g} on this server, got {got:g}", key))

    most("shots", "the number of shots", limits.max_shots, len(shots))
    most("shots", "all frames together", limits.max_frames, frames)
    most("size", "the longer side in px", limits.max_side_px, max(film.width_px, film.height_px))
    most("output.scale", "the longer delivered side in px", limits.max_delivered_px, max(film.delivered_px))
    most("steps", "steps", limits.max_steps, max(s.steps for s in shots))
    longest = max((len(p.encode()) for p in prompts), default=0)
    most("shots", "a prompt with its style, in bytes,", limits.max_prompt_bytes, longest)
    return found


def too_large(shots: Sequence[tuple[int, Shot]], fps: float, limits: Limits) -> list[Problem]:
    """What is too much about a storyboard, before it is cut into chunks; `over_limits` looks at all of the film."""
    if len(shots) > limits.max_shots:
        told = f"must be at most {limits.max_shots} on this server, got {len(shots)}"
        return [Problem(f"the number of shots {told}", "shots")]
    frames = sum(shot.frames if shot.frames is not None else (shot.seconds or 0.0) * fps for _, shot in shots)
    if frames > limits.max_frames:
        told = f"must be at most {limits.max_frames} on this server, got {frames:.0f}"
        return [Problem(f"all frames together {told}", "shots")]
    return []


@dataclass(frozen=True)
class Usage:
    """What one key has at the moment."""

    queued_s: float
    num_films: int
    gpu_hours_today: float = 0.0


def over_quota(usage: Usage, seconds: float, limits: Limits) -> str:
    """Why a key may not submit so many seconds of film now; empty where it may."""
    if usage.num_films + 1 > limits.max_films:
        return f"a key may have {limits.max_films} films that have not ended, and this one has {usage.num_films}"
    if usage.queued_s + seconds > limits.max_queued_s:
        told = f"and this one has {usage.queued_s:g} s and asks for {seconds:g} s more"
        return f"a key may have {limits.max_queued_s:g} s of film that have not ended, {told}"
    most = limits.gpu_hours_per_day
    if most is not None and usage.gpu_hours_today >= most:
        return f"a key may use {most:g} GPU hours a day, and this one has used {usage.gpu_hours_today:.2f}"
    return ""


class Bucket:
    """A token bucket: `rate` requests a second in the long run, twice as many at once, and one in any case."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.most, self.at = rate, max(1.0, 2 * rate), now
        self.level = self.most

    def take(self, now: float) -> float:
        """Seconds to wait before this request is allowed: 0 where it is, which then counts."""
        self.level = min(self.most, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.rate


# -- whose film comes next
