"""The two tables of states: every line, and everything that is not a line."""

from __future__ import annotations

import itertools

import pytest

from farm.states import (
    ENDED,
    JOB_MOVES,
    JOB_STATES,
    TASK_MOVES,
    TASK_STATES,
    WAITING,
    IllegalMove,
    job_after,
    task_after,
)  # fmt: skip

JOB_TABLE = """
not-submitted  submit     queued
queued         hand-out   active
queued         pause      paused
queued         cancel     canceled
queued         finish     completed
queued         fail       failed
queued         take-over  queued
active         pause      pausing
active         cancel     canceling
active         finish     completed
active         fail       failed
active         take-over  queued
pausing        quiet      paused
pausing        resume     queued
pausing        cancel     canceling
pausing        finish     completed
pausing        fail       failed
pausing        take-over  paused
paused         resume     queued
paused         cancel     canceled
paused         finish     completed
paused         fail       failed
paused         take-over  paused
canceling      quiet      canceled
canceling      take-over  canceled
canceling      submit     queued
completed      submit     queued
failed         submit     queued
canceled       submit     queued
"""
TASK_TABLE = """
queued       hand-out   active
queued       pause      paused
queued       give-up    failed
queued       cancel     canceled
soft-failed  hand-out   active
soft-failed  pause      paused
soft-failed  give-up    failed
soft-failed  cancel     canceled
active       succeed    completed
active       fail       soft-failed
active       interrupt  queued
active       give-up    failed
active       cancel     canceled
paused       resume     queued
paused       give-up    failed
paused       cancel     canceled
completed    lose       queued
failed       requeue    queued
canceled     requeue    queued
"""


def read(table: str) -> list[tuple[str, str, str]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return [(before, event.replace("-", " "), after) for before, event, after in rows]


@pytest.mark.parametrize(("before", "event", "after"), read(JOB_TABLE))
def test_moves_of_jobs(before: str, event: str, after: str) -> None:
    assert job_after(None if before == "not-submitted" else before, event) == after  # type: ignore[arg-type]


@pytest.mark.parametrize(("before", "event", "after"), read(TASK_TABLE))
def test_moves_of_tasks(before: str, event: str, after: str) -> None:
    assert task_after(before, event) == after  # type: ignore[arg-type]


def test_nothing_else_moves() -> None:
    assert len(read(JOB_TABLE)) == len(JOB_MOVES)
    assert len(read(TASK_TABLE)) == len(TASK_MOVES)
    for moves, states, after in ((JOB_MOVES, (None, *JOB_STATES), job_after), (TASK_MOVES, TASK_STATES, task_after)):
        events = {event for _, event in moves}
        for state, event in itertools.product(states, events):
            if (state, event) not in moves:
                with pytest.raises(IllegalMove, match="must not"):
                    after(state, event)  # type: ignore[operator]


def test_every_state_can_be_reached_and_left_but_for_the_ends() -> None:
    assert set(JOB_MOVES.values()) == set(JOB_STATES)
    assert set(TASK_MOVES.values()) == set(TASK_STATES)
    assert {event for (state, event) in JOB_MOVES if state in ENDED} == {"submit"}
    assert all((state, "hand out") in TASK_MOVES for state in WAITING)
