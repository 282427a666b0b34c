"""One film while it is rendered: what must run, what has run, and how that looks from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from farm.control.fleet import Slot, Status
from farm.plan.plan import Plan
from farm.states import JobState
from farm.store.jobs import Job
from farm.store.journal import Wish
from farm.task import Attempt, Task


@dataclass
class Rendering:
    """The counts belong to one rendering: a film that is rendered again gets a new one."""

    wish: Wish
    job: Job
    plan: Plan
    to_run: set[str]
    is_ending: bool = False  # its film is being published
    working_since: float = 0.0  # when the first of its tasks was handed out
    status: str = ""  # how it ended: completed, failed, canceled, or lost: to another controller
    done: set[str] = field(default_factory=set)  # keys of what has run
    reason: str = ""  # why it ended
    num_retried: int = 0
    num_mended: int = 0  # times that parts of the finished film were found damaged
    num_not_needed: int = 0  # of those that have run: tries at chunks that were good already
    stage_s: dict[str, float] = field(default_factory=dict)
    cost_done: float = 0.0
    first_step_at: float | None = None
    errors: list[str] = field(default_factory=list)
    num_input_errors: int = 0  # of them, those that the input is to blame for
    film: str = ""
    previews: dict[str, str] = field(default_factory=dict)  # label to path in the store
    news: asyncio.Event = field(default_factory=asyncio.Event)
    followers: set[str] = field(default_factory=set)  # doors that wait for it
    in_flight: int = 0  # attempts that have not been written to the ledger yet

    def __post_init__(self) -> None:
        self.clips = {shot.clip for shot in self.plan.shots}
        self.num_shots_done = len(self.clips - self.to_run)
        self.cost = sum(self.plan.tasks[key].cost for key in self.to_run) or 1.0

    @property
    def is_over(self) -> bool:
        return bool(self.status)

    def end(self, status: str) -> None:
        self.status = status
        self.news.set()

    def count(self, task: Task, attempt: Attempt) -> None:
        """A task of this film has succeeded."""
        self.done.add(task.key)
        self.num_not_needed += bool(attempt.info.get("not_needed"))
        self.num_shots_done += task.key in self.clips
        self.cost_done += task.cost
        self.stage_s[task.stage] = self.stage_s.get(task.stage, 0.0) + attempt.run_s
        if task.stage == "denoise" and (at := attempt.info.get("first_step_at")):
            self.first_step_at = min(self.first_step_at or at, at)

    def run_again(self, keys: set[str]) -> None:
        """Tasks whose outputs have gone."""
        self.cost += sum(self.plan.tasks[key].cost for key in keys - self.to_run)
        self.cost_done -= sum(self.plan.tasks[key].cost for key in keys & self.done)
        self.to_run |= keys
        self.done -= keys

    def view(self, slots: Iterable[Slot], *, state: JobState, reason: str, now: float) -> dict[str, Any]:
        """Plain values for a door: counts, what runs now, seconds left at the pace so far."""
        done = self.cost_done / self.cost
        left = (now - self.working_since) * (1 - done) / done if done > 0.05 else None
        slots = list(slots)
        return {
            "status": self.status or state, "reason": reason, "errors": list(self.errors), "film": self.film,
            "progress": min(1.0, self._cost_now(slots) / self.cost),
            "to_run": len(self.to_run), "shots": len(self.clips), "shots_done": self.num_shots_done,
            "done": len(self.done), "run": len(self.done) - self.num_not_needed, "not_needed": self.num_not_needed,
            "retried": self.num_retried, "stage_s": dict(self.stage_s), "left_s": left,
            "running": [self._running(s, self.plan.tasks[s.busy]) for s in slots if s.busy in self.plan.tasks],
            "starting": [s.name for s in slots if not s.node], "previews": dict(self.previews),
            "first_step_at": self.first_step_at,
            "is_input_at_fault": 0 < len(self.errors) == self.num_input_errors,
        }  # fmt: skip

    def _cost_now(self, slots: Iterable[Slot]) -> float:
        """Of what is done, with the steps of what runs."""
        running = [s for s in slots if s.busy in self.plan.tasks and s.status and s.status.task == s.busy]
        parts = [
            self.plan.tasks[str(s.busy)].cost * s.status.step / max(1, s.status.num_steps) for s in running if s.status
        ]
        return self.cost_done + sum(parts)

    def _running(self, slot: Slot, task: Task) -> dict[str, Any]:
        seen = slot.status if slot.status and slot.status.task == task.key else Status(task.key, 0, 1, b"")
        told = {"stage": task.stage, "label": task.label, "pool": slot.pool, "replica": slot.name}
        return {**told, "step": seen.step, "num_steps": seen.num_steps}
