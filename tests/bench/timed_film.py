"""One film through a running controller, timed: what the benchmarks of makespan share."""

from __future__ import annotations

import time
from typing import Any

from doors import submit, wait_for_end
from in_process import Board, resolve_board

from farm.film.film import job_id_of
from farm.models.checkpoint import Checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.pools import Pool, numerics
from farm.store.jobs import Job, write_job
from farm.store.store import Store


def render_timed(
    controller: Any, store: Store, pools: dict[str, Pool], board: Board, checkpoint: Checkpoint
) -> tuple[Plan, Job, float]:
    """The film's plan and job, and the seconds from submitting it until it is complete."""
    film = resolve_board(board, checkpoint).film
    job = Job(job_id_of(film, checkpoint), film, (checkpoint,), "")
    write_job(store, job)
    plan = make_plan(film, (checkpoint,), numerics(pools), container="mp4", stills=False)
    started = time.monotonic()
    view = wait_for_end(controller, submit(controller, job.id))
    seconds = time.monotonic() - started
    assert view["status"] == "completed", view
    return plan, job, seconds
