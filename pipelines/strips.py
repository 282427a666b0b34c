"""The frames of a strip: read one by one from lossless inputs, their colours moved, repeated or left out by time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from farm.task import Strip
from pipelines.colour import Corrections
from pipelines.frames import Frame, read_lossless
from pipelines.stage import Artifact, as_bytes


def read_all(inputs: Iterable[Artifact]) -> Iterator[Frame]:
    """The frames of several artifacts, one after another; one artifact in memory at a time."""
    for artifact in inputs:
        yield from read_lossless(as_bytes(artifact))


def num_inputs(strip: Strip) -> int:
    """How many of a task's inputs are the strip's."""
    return strip.num_pieces + bool(strip.chunk_starts)


def source_frames(strip: Strip, inputs: Sequence[Artifact]) -> Iterator[Frame]:
    """All frames of the strip's inputs, at their rate, with their colours moved where the shot's colours are matched.

    The first one is number `strip.source_frame` of the shot.
    """
    frames = read_all(inputs[: strip.num_pieces])
    if not strip.chunk_starts:
        yield from frames
        return
    corrections = Corrections.from_json(as_bytes(inputs[strip.num_pieces]), strip.chunk_starts, first=strip.first_chunk)
    for number, frame in enumerate(frames, start=strip.source_frame):
        yield corrections.apply(frame, number)


def read_strip(strip: Strip, inputs: Sequence[Artifact]) -> Iterator[Frame]:
    """The strip's frames: each shows the frame in force at its time."""
    yield from retime(source_frames(strip, inputs), strip)


def retime(frames: Iterable[Frame], strip: Strip) -> Iterator[Frame]:
    """Repeat or drop frames so that frame j is the one in force at time j * step; times past the last repeat it."""
    for a, _, _ in pairs(frames, strip):
        yield a


def pairs(frames: Iterable[Frame], strip: Strip) -> Iterator[tuple[Frame, Frame | None, Fraction]]:
    """For each frame of the strip, the frame in force, the one after it, and how far between them its time lies.

    The one after is None where the time is exactly the first one's, or past the last frame.
    """
    step, source = Fraction(strip.step), iter(frames)
    current, following, number = next(source), None, strip.source_frame
    for j in range(strip.first_frame, strip.first_frame + strip.num_frames):
        at = j * step
        while number < int(at):
            following = following if following is not None else next(source, None)
            if following is None:
                break
            current, following, number = following, None, number + 1
        share = at - number
        if 0 < share < 1 and following is None:
            following = next(source, None)
        yield (current, following, share) if 0 < share < 1 and following is not None else (current, None, Fraction(0))
