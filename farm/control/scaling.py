"""How many replicas a pool should have now, and how work is spread over them: pure decisions."""

from __future__ import annotations

IDLE_S = 60.0  # a replica above the minimum leaves after this long without work


def num_replicas_wanted(*, waiting: int, busy: int, least: int, most: int) -> int:
    """One replica a task that runs or waits, within the pool's bounds."""
    return max(least, min(most, waiting + busy))


def share_out(num_slices: int, num_workers: int) -> list[list[int]]:
    """Slices for each worker: neighbours together, shares that differ by one at most, the smaller ones first."""
    least, more = divmod(num_slices, num_workers)
    shares, at = [], 0
    for worker in range(num_workers):
        size = least + (worker >= num_workers - more)
        shares.append(list(range(at, at + size)))
        at += size
    return shares


def may_leave(*, idle_s: float, num_replicas: int, wanted: int) -> bool:
    return num_replicas > wanted and idle_s >= IDLE_S
