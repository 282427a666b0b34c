"""What to do after an attempt has failed: a pure function of the attempts made so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .task import Attempt

MAX_FAILURES = 3


@dataclass(frozen=True)
class Retry:
    """Queue the task again; any replica but these, where the pool has others."""

    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GiveUp:
    reason: str


def after_failure(attempts: Sequence[Attempt], *, limit: int = MAX_FAILURES) -> Retry | GiveUp:
    """Decide on a task whose last attempt did not succeed. Interrupted attempts never count."""
    failures = [a for a in attempts if a.outcome == "failed"]
    last = attempts[-1]
    if last.outcome == "failed" and last.info.get("input_error"):
        return GiveUp(last.reason)
    if len(failures) >= limit:
        return GiveUp(f"{len(failures)} attempts failed; the last: {last.reason}")
    return Retry(frozenset(a.replica for a in failures))
