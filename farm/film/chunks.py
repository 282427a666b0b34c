"""Which lengths a model can generate, and how a shot's length becomes one of them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from farm.models.frame_rule import FrameRule


@dataclass(frozen=True)
class Chunk:
    """What one model call generates: its new frames in the shot, and its latent frames in the stream of the decoder."""

    first_frame: int  # of the shot; the first one that the chunk adds
    generated: int  # frames that it adds
    kept: int  # of them in the film
    num_latents: int  # latent frames of the model call
    context_latents: int = 0  # of them, at the start, that are given
    first_latent: int = 0  # where they begin in the stream; 0 where every chunk is a stream of its own


def round_half_up(value: Fraction) -> int:
    return int((2 * value.numerator + value.denominator) // (2 * value.denominator))


def rate_of(fps: float) -> Fraction:
    """A rate as it was meant: as written in decimal, or 24000/1001 and the like, which decimals only come near."""
    near = Fraction(fps).limit_denominator(1001)
    return near if float(near) == fps else Fraction(str(fps))


def num_frames_of(*, seconds: float, fps: float) -> int:
    """seconds x fps to the nearest frame, halves up; at least one."""
    return max(1, round_half_up(Fraction(str(seconds)) * rate_of(fps)))


def num_delivered(num_frames: int, *, fps: float, output_fps: float) -> int:
    """How many frames a shot of `num_frames` model frames delivers at `output_fps`, halves up."""
    return max(1, round_half_up(num_frames * rate_of(output_fps) / rate_of(fps)))


def cut_into_chunks(
    *, num_frames: int, chunk_frames: int, overlap_frames: int, rule: FrameRule, context: str, before: int = 0,
    reach: int | None = None,
) -> list[Chunk]:  # fmt: skip
    """Cover a shot with chunks; the tail of the last one is cut where the rule allows no exact end.

    With `latents` all chunks lie in one stream of latent frames; each further chunk begins with the latent frames of
    its overlap, the last one is pulled back to end where the stream ends. With `frames` and `last_frame` each chunk is
    a stream of its own that begins with the overlap encoded anew; with `frames` the last is pulled back too. With
    `none` chunks stand side by side.

    Args:
        num_frames: of the shot.
        chunk_frames, overlap_frames: allowed by the rule; the overlap is below the chunk (0 with `none`).
        before: frames of the stream that come before the shot, where it goes on from another.
        reach: with `latents`, how many latent frames the last task of that other shot holds (all where not given):
            context can be no longer.

    Raises:
        ValueError: chunk and overlap do not fit together.
    """
    latents = [rule.num_latents(n) if n else 0 for n in (overlap_frames, chunk_frames)]
    if not (rule.allows(chunk_frames) and latents[0] < latents[1]):
        raise ValueError(f"chunks of {chunk_frames} frames with an overlap of {overlap_frames} do not fit {rule}")
    if context == "latents":
        return _in_one_stream(num_frames, chunk_frames, overlap_frames, rule, before, reach)
    return _in_own_streams(num_frames, chunk_frames, overlap_frames, rule, context, before)


def _in_one_stream(
    num_frames: int, chunk_frames: int, overlap_frames: int, rule: FrameRule, before: int, reach: int | None
) -> list[Chunk]:
    longest, overlap = rule.num_latents(chunk_frames), rule.num_latents(overlap_frames)
    done = rule.num_latents(rule.at_least(before)) if before else 0
    total = rule.num_latents(rule.at_least(before + num_frames))
    reach = done if reach is None else reach
    chunks = []
    while done < total:
        end = min(total, done + longest - min(overlap, done, reach))
        start = max(0, end - longest, done - reach)
        first, last = rule.num_frames(done) - before, rule.num_frames(end) - before
        kept = min(last, num_frames) - first
        chunks.append(Chunk(first, last - first, kept, end - start, done - start, start))
        done, reach = end, end - start
    return chunks


def _in_own_streams(
    num_frames: int, chunk_frames: int, overlap_frames: int, rule: FrameRule, context: str, before: int
) -> list[Chunk]:
    chunks: list[Chunk] = []
    done = 0
    while done < num_frames:
        length, left, past = chunk_frames, num_frames - done, before + done
        overlap = max((n for n in range(min(overlap_frames, past) + 1) if n == 0 or rule.allows(n)), default=0)
        if past == 0:
            length = min(length, rule.at_least(left))
        elif context == "frames":
            longer = [n for n in range(overlap, min(chunk_frames - left, past) + 1) if rule.allows(n)]
            overlap = max(longer, default=overlap)
        known = rule.num_latents(overlap) if overlap else 0
        generated = length - overlap
        chunks.append(Chunk(done, generated, min(generated, left), rule.num_latents(length), known))
        done += generated
    return chunks
