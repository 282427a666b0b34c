"""The states of jobs and tasks, and what takes them from one to another: two tables, and nothing else changes a state.

Names as in Flamenco. A job waits (`queued`), is worked on (`active`), and ends `completed`, `failed` or `canceled`;
`pausing` and `canceling` last until none of its attempts runs. A task that has failed and will be tried again is
`soft-failed`; it waits like a queued one.
"""

from __future__ import annotations

from typing import Literal, get_args

from farm.errors import FarmError

JobState = Literal["queued", "active", "pausing", "paused", "canceling", "completed", "failed", "canceled"]
TaskState = Literal["queued", "active", "soft-failed", "completed", "failed", "canceled", "paused"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
TASK_STATES: tuple[TaskState, ...] = get_args(TaskState)
ENDED: tuple[JobState, ...] = ("completed", "failed", "canceled")
WAITING: tuple[TaskState, ...] = ("queued", "soft-failed")

JOB_MOVES: dict[tuple[JobState | None, str], JobState] = {
    (None, "submit"): "queued",
    ("queued", "hand out"): "active", ("queued", "pause"): "paused", ("queued", "cancel"): "canceled",
    ("queued", "finish"): "completed", ("queued", "fail"): "failed", ("queued", "take over"): "queued",
    ("active", "pause"): "pausing", ("active", "cancel"): "canceling", ("active", "finish"): "completed",
    ("active", "fail"): "failed", ("active", "take over"): "queued",
    ("pausing", "quiet"): "paused", ("pausing", "resume"): "queued", ("pausing", "cancel"): "canceling",
    ("pausing", "finish"): "completed", ("pausing", "fail"): "failed", ("pausing", "take over"): "paused",
    ("paused", "resume"): "queued", ("paused", "cancel"): "canceled", ("paused", "take over"): "paused",
    ("paused", "finish"): "completed", ("paused", "fail"): "failed",
    ("canceling", "quiet"): "canceled", ("canceling", "take over"): "canceled", ("canceling", "submit"): "queued",
    ("completed", "submit"): "queued", ("failed", "submit"): "queued", ("canceled", "submit"): "queued",
}  # fmt: skip

TASK_MOVES: dict[tuple[TaskState, str], TaskState] = {
    ("queued", "hand out"): "active", ("queued", "pause"): "paused", ("queued", "give up"): "failed",
    ("queued", "cancel"): "canceled",
    ("soft-failed", "hand out"): "active", ("soft-failed", "pause"): "paused", ("soft-failed", "give up"): "failed",
    ("soft-failed", "cancel"): "canceled",
    ("active", "succeed"): "completed", ("active", "fail"): "soft-failed", ("active", "interrupt"): "queued",
    ("active", "give up"): "failed", ("active", "cancel"): "canceled",
    ("paused", "resume"): "queued", ("paused", "give up"): "failed", ("paused", "cancel"): "canceled",
    ("completed", "lose"): "queued",
    ("failed", "requeue"): "queued", ("canceled", "requeue"): "queued",
}  # fmt: skip


class IllegalMove(FarmError):
    """A state has no such way out: a fault of the farm itself."""


def job_after(state: JobState | None, event: str) -> JobState:
    """The state of a job after an event; it has none before it is submitted.

    Raises:
        IllegalMove: the table has no such line.
    """
    if (state, event) not in JOB_MOVES:
        raise IllegalMove(f"a job that is {state or 'not submitted'} must not {event}")
    return JOB_MOVES[state, event]


def task_after(state: TaskState, event: str) -> TaskState:
    """As `job_after`, of a task."""
    if (state, event) not in TASK_MOVES:
        raise IllegalMove(f"a task that is {state} must not {event}")
    return TASK_MOVES[state, event]
