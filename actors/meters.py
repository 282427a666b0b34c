"""What a farm measures about itself, for Prometheus through Ray (`ray.util.metrics`): one table, with bounded tags.

Ray serves them on every node (`ray metrics launch-prometheus`, or the port that `ray status` names) with the prefix
`ray_`. `dashboards/` draws from the ledger instead, which has everything, but only of jobs that have ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from farm.control.control import Control
from farm.task import STAGES, Attempt

log = logging.getLogger(__name__)
LOOK_S = 5.0
TASK_BOUNDS_S = [0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600]
STORE_BOUNDS_S = [0.002, 0.01, 0.05, 0.2, 1, 5, 30]
TABLE: dict[str, tuple[str, str, tuple[str, ...]]] = {  # name: kind, what it says, tags
    "longtake_tasks_waiting": ("gauge", "tasks that could run now", ("stage",)),
    "longtake_oldest_task_s": ("gauge", "seconds that the oldest of them has waited", ("stage",)),
    "longtake_replicas": ("gauge", "replicas: starting, idle or busy", ("pool", "state")),
    "longtake_films_open": ("gauge", "films that this controller renders", ()),
    "longtake_films_waiting": ("gauge", "films in the store's queue that it has not taken on", ()),
    "longtake_films": ("count", "films that have ended", ("outcome",)),
    "longtake_film_s": ("count", "seconds of film finished", ()),
    "longtake_film_frames": ("count", "delivered frames finished", ()),
    "longtake_attempts": ("count", "attempts at tasks", ("stage", "pool", "outcome", "cause")),
    "longtake_gpu_s": ("count", "GPU seconds of attempts", ("stage", "pool", "model")),
    "longtake_task_s": ("histogram", "seconds of attempts that succeeded", ("stage", "pool")),
    "longtake_store_s": ("histogram", "seconds of calls of the store by the controller", ("outcome",)),
}
Io = Callable[..., Awaitable[Any]]


class Meters:
    """The table's meters. Made once in a process that Ray knows."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self.all: dict[str, Any] = {}
        for name, (kind, text, tags) in TABLE.items():
            if kind == "histogram":
                bounds = STORE_BOUNDS_S if name == "longtake_store_s" else TASK_BOUNDS_S
                self.all[name] = Histogram(name, text, boundaries=bounds, tag_keys=tags)
            else:
                self.all[name] = (Counter if kind == "count" else Gauge)(name, text, tag_keys=tags)

    def add(self, name: str, value: float, *tags: str) -> None:
        """Count something, or observe it; counts of nothing are left out, as Ray wants them above 0."""
        kind, _, keys = TABLE[name]
        told = dict(zip(keys, tags, strict=True))
        if kind == "histogram":
            self.all[name].observe(value, tags=told)
        elif kind == "gauge":
            self.all[name].set(value, tags=told)
        elif value > 0:
            self.all[name].inc(value, tags=told)

    def note_attempt(self, attempt: Attempt) -> None:
        self.add("longtake_attempts", 1, attempt.stage, attempt.pool, attempt.outcome, attempt.cause)
        self.add("longtake_gpu_s", attempt.gpu_s, attempt.stage, attempt.pool, attempt.model)
        if attempt.outcome == "succeeded":
            self.add("longtake_task_s", attempt.ended_at - attempt.started_at, attempt.stage, attempt.pool)

    def note_end(self, outcome: str, frames: int, seconds: float) -> None:
        """Of a film, in delivered frames."""
        self.add("longtake_films", 1, outcome)
        if outcome == "completed":
            self.add("longtake_film_frames", frames)
            self.add("longtake_film_s", seconds)

    def timed(self, io: Io) -> Io:
        """Calls of the store, measured."""

        async def call(work: Callable[..., Any], *values: Any, **named: Any) -> Any:
            started, outcome = time.perf_counter(), "error"
            try:
                answer = await io(work, *values, **named)
                outcome = "ok"
                return answer
            finally:
                self.add("longtake_store_s", time.perf_counter() - started, outcome)

        return call

    def look(self, control: Control) -> None:
        """Set the gauges."""
        work, now = control.work, control.now()
        waiting = [(key, node.task.stage) for key, node in control.dispatcher.nodes.items() if node.is_ready]
        for stage in STAGES:
            ages = [now - work.queued_at.get(key, now) for key, own in waiting if own == stage]
            self.add("longtake_tasks_waiting", len(ages), stage)
            self.add("longtake_oldest_task_s", max(ages, default=0.0), stage)
        for pool in control.pools:
            states = [_state(slot) for slot in control.fleet.of(pool)]
            for state in ("starting", "idle", "busy"):
                self.add("longtake_replicas", states.count(state), pool, state)
        self.add("longtake_films_open", sum(not r.is_over for r in control.jobs.renderings.values()))
        taken = {name for name, r in control.jobs.renderings.items() if not r.is_over}
        self.add("longtake_films_waiting", len(control.adoption.waiting.known.keys() - taken))

    async def keep_looking(self, control: Control) -> None:
        while True:
            try:
                self.look(control)
            except Exception:  # metrics are not worth a controller, nor the rest of the metrics
                log.exception("the gauges could not be set")
            await asyncio.sleep(LOOK_S)


def _state(slot: Any) -> str:
    return "starting" if not slot.node else "busy" if slot.busy else "idle"
