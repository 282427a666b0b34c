"""How the ranks of a gang share one denoise task: which degrees are possible, and which are likely to be the fastest.

Legend: ulysses u and ring r split the tokens of one forward pass over s = u * r ranks, guidance g = 2 gives its two
passes to two halves of the gang; u * r * g are all ranks. Ranks are numbered guidance outermost, ulysses innermost, so
that those which exchange most sit next to each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from farm.errors import InputError, Problem
from farm.models.card import ModelCard
from farm.task import Denoise

GPU_TFLOPS = {  # dense bfloat16, by Ray's names of accelerators (vendors' data sheets); of others UNKNOWN_TFLOPS
    "V100": 112, "T4": 65, "L4": 121, "A10G": 70, "L40S": 362, "A100": 312, "A100-40G": 312, "A100-80G": 312,
    "H100": 989, "H200": 989, "H20": 148, "B200": 2250, "GB200": 2250, "B300": 2250,
}  # fmt: skip
UNKNOWN_TFLOPS = 100.0
# What follows is assumed, not measured here; `make bench NAME=gang_scaling` sets estimates beside figures on GPUs.
USE = 0.45  # of the peak that a video transformer reaches
NVLINK_GB_S = {"A100": 300, "A100-40G": 300, "A100-80G": 300, "H100": 450, "H200": 450, "H20": 450, "B200": 900,
               "GB200": 900, "B300": 900}  # one direction of a GPU, data sheets  # fmt: skip
PCIE_GB_S, NETWORK_GB_S = 25.0, 25.0  # of GPUs without NVLink; between nodes (200 Gbit/s)
LINK_USE = 0.6  # of a link's rate that collectives reach
LATENCY_S = 30e-6  # of one collective
WORD_BYTES = 2  # bfloat16
ACTIVATIONS = 24  # buffers of a rank's tokens x width that a forward pass holds at its peak: states, q, k, v, MLP
USABLE_MEMORY = 0.9
RING_MARGIN = 0.02


@dataclass(frozen=True)
class Degrees:
    ulysses: int = 1
    ring: int = 1
    guidance: int = 1

    @property
    def sequence(self) -> int:
        return self.ulysses * self.ring

    @property
    def size(self) -> int:
        return self.ulysses * self.ring * self.guidance

    def __str__(self) -> str:
        told = [f"{name} {n}" for name, n in vars(self).items() if n > 1]
        return " x ".join(told) or "one rank"


@dataclass(frozen=True)
class Work:
    """What one step of a denoise task asks of its gang."""

    card: ModelCard
    video_tokens: int
    text_tokens: int  # that are split with those of the video; 0 where every rank has all of them
    is_guided: bool  # two passes

    @property
    def tokens(self) -> int:
        return self.video_tokens + self.text_tokens


@dataclass(frozen=True)
class Hardware:
    """Of one rank, and of how many lie on one node."""

    ranks_per_node: int
    accelerator: str | None = None
    memory_gib: float = 0.0  # 0: not known


@dataclass(frozen=True)
class Sharing:
    """What a pool says of how the ranks of its replicas share tasks."""

    ranks: int
    degrees: Degrees | None  # None: chosen for each task
    shard_weights: bool
    hardware: Hardware

    def degrees_for(self, work: Work) -> Degrees:
        """Raises:
        InputError: the model cannot be shared in this way.
        """
        if self.degrees is None:
            return choose(self.ranks, work, self.hardware, shard_weights=self.shard_weights).degrees
        if told := faults(self.degrees, work):
            raise InputError(Problem(f"parallel.{told[0]}"))
        return self.degrees


@dataclass(frozen=True)
class Estimate:
    degrees: Degrees
    compute_s: float
    exchange_s: float

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exchange_s

    def __str__(self) -> str:
        return (
            f"{self.degrees}: about {_short(self.step_s)} a step, {_short(self.compute_s)} to compute and "
            f"{_short(self.exchange_s)} to exchange"
        )


def work_of(card: ModelCard, latent_shape: tuple[int, ...], *, num_latents: int, is_guided: bool) -> Work:
    """One slice of `num_latents` latent frames of a latent (B, C, F, H, W)."""
    t, h, w = card.patch
    rows, columns = latent_shape[3:]
    video = -(-num_latents // t) * (rows // h) * (columns // w)
    return Work(card, video, card.max_tokens if card.splits_text else 0, is_guided)


def work_of_request(card: ModelCard, request: Denoise) -> Work:
    """The longest pass that a denoise task asks for: one of its slices, and the latent frames that lead it."""
    covered = max(s.first_latent + s.num_latents for s in request.slices)
    longest = max(s.num_latents for s in request.slices) + request.latent_shape[2] - covered + request.anchor
    is_guided = any(s.negative is not None for s in request.slices)
    return work_of(card, request.latent_shape, num_latents=longest, is_guided=is_guided)


def faults(degrees: Degrees, work: Work) -> list[str]:
    """Why a model cannot be split in this way, each with the nearest degrees that can; empty where it can."""
    card, found = work.card, []
    if degrees.guidance > 1 and "guidance" not in card.splits:
        found.append(f"guidance must be 1 for {card.name}, whose guidance has no second pass to give away, got 2")
    if degrees.ring > 1 and "ulysses" in card.splits:
        found.append(f"ring must be 1 for {card.name}, whose attention only ulysses can share, got {degrees.ring}")
    if "ulysses" in card.splits and work.video_tokens % degrees.ulysses:
        able = _nearest([n for n in range(1, 65) if work.video_tokens % n == 0], degrees.ulysses)
        found.append(
            f"ulysses must divide the {work.video_tokens} tokens of {card.name}, got {degrees.ulysses}; nearest: {able}"
        )
    if degrees.sequence > 1 and not {"sequence", "ulysses"}.intersection(card.splits):
        found.append(f"ulysses and ring must be 1 for {card.name}, which has no plan for splitting its tokens")
        return found
    if card.num_heads and card.num_heads % degrees.ulysses:
        able = _nearest([n for n in range(1, card.num_heads + 1) if card.num_heads % n == 0], degrees.ulysses)
        found.append(
            f"ulysses must divide the {card.num_heads} heads of {card.name}, got {degrees.ulysses}; nearest: {able}"
        )
    lengths = [n for n in (work.video_tokens, work.text_tokens) if n]
    if degrees.ulysses > 1 and degrees.ring > 1 and card.splits_text == "masked":
        found.append(
            f"one of ulysses and ring must be 1 for {card.name}, whose prompts have any number of tokens, got "
            f"{degrees.ulysses} x {degrees.ring}"
        )
    elif degrees.ulysses > 1 and degrees.ring > 1 and any(n % degrees.sequence for n in lengths):
        able = _nearest([n for n in range(1, 65) if all(length % n == 0 for length in lengths)], degrees.sequence)
        told = " and ".join(map(str, lengths))
        found.append(
            f"ulysses x ring must divide {told} tokens of {card.name} where both are above 1, got "
            f"{degrees.ulysses} x {degrees.ring}; nearest: {able} ranks, or one of the two alone"
        )
    if min(lengths) < degrees.sequence:
        found.append(f"ulysses x ring must be at most {min(lengths)}, the tokens there are, got {degrees.sequence}")
    return found


def candidates(ranks: int, work: Work) -> Iterator[Degrees]:
    """All ways in which so many ranks can share this work."""
    for guidance in (1, 2):
        if ranks % guidance or (guidance == 2 and not work.is_guided):
            continue
        rest = ranks // guidance
        for ulysses in (n for n in range(1, rest + 1) if rest % n == 0):
            degrees = Degrees(ulysses, rest // ulysses, guidance)
            if not faults(degrees, work):
                yield degrees


def bytes_sent(degrees: Degrees, work: Work, *, word_bytes: int = WORD_BYTES) -> float:
    """What one rank sends in one forward pass, in bytes.

    Ulysses: four all-to-alls a block (queries, keys, values, outputs) of the rank's N / s tokens, of which a share of
    (u - 1) / u leaves it (Jacobs et al., "DeepSpeed Ulysses", 2023). Ring, in diffusers an all-gather of keys and
    values: 2 N / s tokens a block to each of r - 1 others. At the end the prediction's tokens are gathered, N_video / s
    of `out_width` values to s - 1 others. All widths are those of the model; N counts what is split, padded to s.
    Where every rank has the whole prompt (`ulysses` alone), its attention is gathered: T / u tokens' worth of heads a
    block to u - 1 others, of at most `max_tokens`.
    """
    s, card = degrees.sequence, work.card
    if s == 1:
        return 0.0
    own = sum(math.ceil(n / s) for n in (work.video_tokens, work.text_tokens))
    inside = _values_sent(degrees, own * card.width)
    if "ulysses" in card.splits:
        inside += card.max_tokens * card.width / degrees.ulysses * (degrees.ulysses - 1)
    end = math.ceil(work.video_tokens / s) * card.out_width * (s - 1)
    return word_bytes * (card.num_blocks * inside + end)


def _values_sent(degrees: Degrees, values: float) -> float:
    """What a rank sends in a block whose hidden states are so many values there."""
    return values * (4 * (degrees.ulysses - 1) / degrees.ulysses + 2 * (degrees.ring - 1))


def estimate(degrees: Degrees, work: Work, hardware: Hardware) -> Estimate:
    """Seconds of a step by a roofline model: floating point operations, and bytes on the slowest link that they use.

    A forward pass takes 2 operations a weight and token, and 4 N^2 a width for attention (queries with keys, weights
    with values), each block. Exchange is not overlapped with computing, as in diffusers.
    """
    card, s = work.card, degrees.sequence
    padded = s * sum(math.ceil(n / s) for n in (work.video_tokens, work.text_tokens))
    operations = card.num_blocks * (
        2.0 * (card.block_weights - card.text_weights) * padded + 4.0 * padded**2 * card.width
    )
    passes = 2 if work.is_guided and degrees.guidance == 1 else 1
    speed = GPU_TFLOPS.get(hardware.accelerator or "", UNKNOWN_TFLOPS) * 1e12 * USE
    inside = NVLINK_GB_S.get(hardware.accelerator or "", PCIE_GB_S)
    ulysses_s = _exchange_s(Degrees(degrees.ulysses), work, s, hardware, inside, reach=degrees.ulysses)
    ring_s = _exchange_s(Degrees(1, degrees.ring), work, s, hardware, inside, reach=s)
    return Estimate(degrees, passes * operations / s / speed, passes * (ulysses_s + ring_s))


def _exchange_s(part: Degrees, work: Work, sequence: int, hardware: Hardware, inside: float, *, reach: int) -> float:
    """Of one of the two ways to split: `reach` neighbouring ranks take part."""
    if part.sequence == 1:
        return 0.0
    own = sum(math.ceil(n / sequence) for n in (work.video_tokens, work.text_tokens))
    moved = _values_sent(part, own * work.card.width) * WORD_BYTES
    is_inside = hardware.ranks_per_node % reach == 0  # else some such group lies across two nodes
    rate = (inside if is_inside else NETWORK_GB_S) * 1e9 * LINK_USE
    num_calls = 4 if part.ulysses > 1 else 1
    return work.card.num_blocks * (moved / rate + num_calls * LATENCY_S)


def fits(degrees: Degrees, work: Work, hardware: Hardware, *, shard_weights: bool) -> bool:
    """Whether weights and activations find room, as far as the memory is known."""
    if not hardware.memory_gib:
        return True
    card = work.card
    whole = card.num_blocks * card.block_weights * WORD_BYTES * (2 if card.has_two_experts else 1)
    weights = whole / (degrees.size if shard_weights else 1)
    own = math.ceil(work.tokens / degrees.sequence)
    return weights + ACTIVATIONS * own * card.width * WORD_BYTES <= USABLE_MEMORY * hardware.memory_gib * 2**30


def choose(ranks: int, work: Work, hardware: Hardware, *, shard_weights: bool = False) -> Estimate:
    """The fastest degrees by `estimate` among those that fit (all of them where none does).

    A ring must be faster by RING_MARGIN: it merges partial attention in float32, with other bits than one rank.

    Raises:
        InputError: so many ranks cannot share this work; says which numbers can.
    """
    able = list(candidates(ranks, work))
    if not able:
        numbers = [n for n in range(1, 65) if any(candidates(n, work))]
        told = _nearest(numbers, ranks)
        message = f"ranks must be able to share {work.tokens} tokens of {work.card.name}, got {ranks}; nearest: {told}"
        raise InputError(Problem(message))
    roomy = [d for d in able if fits(d, work, hardware, shard_weights=shard_weights)] or able
    made = [estimate(d, work, hardware) for d in roomy]
    return min(made, key=lambda e: (e.step_s * (1 + RING_MARGIN * (e.degrees.ring > 1)), e.degrees.ring))


def _nearest(able: list[int], wanted: int) -> str:
    below, above = [n for n in able if n < wanted], [n for n in able if n > wanted]
    return " and ".join(str(n) for n in [*below[-1:], *above[:1]]) or "none"


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"
