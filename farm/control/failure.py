"""What to do after an attempt has failed: pure functions of the attempts made so far.

Interrupted attempts say nothing about a task and never count. A lack of memory is a case of its own: once more with
means that change no pixel, then where there is more memory. What is wrong with the input will be wrong again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from farm.task import Attempt

MAX_FAILURES = 3
MAX_OVERFLOWS = 2  # outputs that are not finite, of one task
MAX_TASKS_FAILED = 3  # different tasks that a replica may fail before it is replaced
MAX_REPLICAS_REPLACED = 2  # on one node, before that is avoided


@dataclass(frozen=True)
class Retry:
    """Queue the task again."""

    avoid: frozenset[str] = frozenset()  # replicas, where the pool has others
    pools: frozenset[str] = frozenset()  # that may take it; empty: any
    frugal: bool = False  # with as little memory as gives the same bits
    restart: bool = False  # end the replica that failed it: there is no other, and the next try shall find a fresh one


@dataclass(frozen=True)
class GiveUp:
    reason: str
    is_input: bool = False  # what was asked for is at fault, not the farm


def after_failure(
    attempts: Sequence[Attempt], *, memory: Mapping[str, tuple[float, float]], is_alone: bool = False,
    limit: int = MAX_FAILURES,
) -> Retry | GiveUp:  # fmt: skip
    """Decide on a task whose last attempt did not succeed.

    Args:
        memory: of a replica of each pool that serves the stage: (GiB of GPUs, GiB of the host).
        is_alone: the pool has no replica but those that have failed it.
    """
    last = attempts[-1]
    failures = [a for a in attempts if a.outcome == "failed"]
    short = [a for a in failures if a.cause == "memory"]
    counted = [a for a in failures if a.cause != "memory"]
    if last.outcome == "failed" and last.cause == "input":
        return GiveUp(last.reason, is_input=True)
    overflows = [a for a in failures if a.cause == "overflow"]
    if len(overflows) >= MAX_OVERFLOWS:  # once more elsewhere, where a GPU is at fault; the same sums give the same
        return GiveUp(overflows[-1].reason)
    if len(counted) >= limit:
        return GiveUp(f"{len(counted)} attempts failed; the last: {last.reason}")
    avoid = frozenset(a.replica for a in counted)
    if not short:
        return Retry(avoid, restart=last.outcome == "failed" and is_alone)
    frugal = [a for a in short if a.info.get("frugal")]
    if not frugal:
        return Retry(avoid, pools=frozenset({short[-1].pool}), frugal=True)
    most = max(memory.get(a.pool, (0.0, 0.0)) for a in frugal)
    larger = frozenset(name for name, size in memory.items() if size > most)
    if not larger:
        return GiveUp(
            f"not enough memory in any pool, also with weights kept out of the way: {short[-1].reason}; choose a "
            "smaller size or chunk_frames, add a pool with more memory, or tile the decoder (which changes pixels a "
            "little)"
        )
    return Retry(avoid, pools=larger, frugal=True)


def is_bad_replica(failed: Collection[str]) -> bool:
    """Whether a replica that failed these tasks is to be replaced."""
    return len(set(failed)) >= MAX_TASKS_FAILED


def nodes_to_avoid(replaced: Mapping[str, int], alive: Collection[str]) -> list[str]:
    """Nodes on which no more replicas are started, by how many had to be replaced there; never all that are alive."""
    bad = sorted(node for node, count in replaced.items() if count >= MAX_REPLICAS_REPLACED and node in alive)
    return bad if len(bad) < len(alive) else []
