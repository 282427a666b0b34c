"""How many replicas a pool should have now: pure decisions from the work that waits."""

from __future__ import annotations

IDLE_S = 60.0  # a replica above the minimum leaves after this long without work


def num_replicas_wanted(*, waiting: int, busy: int, least: int, most: int) -> int:
    """One replica a task that runs or waits, within the pool's bounds."""
    return max(least, min(most, waiting + busy))


def may_leave(*, idle_s: float, num_replicas: int, wanted: int) -> bool:
    return num_replicas > wanted and idle_s >= IDLE_S
