"""What must hold in a store, whatever was killed while it was written: read by tests after every disaster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from farm.plan.plan import Plan
from farm.states import ENDED, JOB_MOVES
from farm.store.journal import Standing, read_attempts, read_log
from farm.store.store import Store
from farm.task import Attempt


def faults_of_log(store: Store, job: str) -> list[str]:
    """Of a job's journal: fences only rise, only their holders write, every move is in the table."""
    found = []
    standing, writers = Standing(), dict[int, str]()
    for number, record in enumerate(read_log(store, job), start=1):
        where, fence = f"record {number} of {job}", record["fence"]
        if record["kind"] == "lease":
            if fence != standing.fence + 1:
                found.append(f"{where}: a lease of fence {fence} after {standing.fence}")
            writers[fence] = record["writer"]
        elif fence != standing.fence or record["writer"] != writers.get(fence):
            found.append(f"{where}: written by {record['writer']} with fence {fence}, which it does not hold")
        if record["kind"] == "state":
            before, event = standing.state, record["event"]
            legal = JOB_MOVES.get((before, event))
            if record["state"] != legal:
                found.append(f"{where}: {before} must not become {record['state']} by {event}")
            if not record["reason"]:
                found.append(f"{where}: without a reason")
        standing.read(record)
    return found


def faults_of_attempts(attempts: list[Attempt]) -> list[str]:
    """Of one job's attempts: none at the same task overlap under one lease."""
    found, by_task = [], defaultdict(list)
    for attempt in attempts:
        by_task[attempt.task, attempt.fence].append(attempt)
    for (task, fence), tries in by_task.items():
        tries.sort(key=lambda a: a.started_at)
        for one, other in pairwise(tries):
            if other.started_at < one.ended_at - 1e-6:
                found.append(f"task {task[:8]} ran twice at once under fence {fence}: {one.replica}, {other.replica}")
    return found


def faults_of_job(store: Store, job: str, plan: Plan, *, is_watched: bool = False, is_clear: bool = True) -> list[str]:
    """All that is wrong with a job that should have ended.

    Args:
        is_clear: a controller has stayed to give back what one that died had taken: its lease, its place in the queue.
            (A lease left on a job that has ended costs whoever renders that job next some seconds, and nothing else.)
        is_watched: no two controllers have driven it at once, so that nothing has succeeded twice.
    """
    found = faults_of_log(store, job)
    standing = Standing()
    for record in read_log(store, job):
        standing.read(record)
    attempts = read_attempts(store, job)
    found += faults_of_attempts(attempts)
    if standing.state not in ENDED:
        found.append(f"job {job} has not ended: {standing.state} ({standing.reason})")
    if is_clear and standing.owner is not None:
        found.append(f"job {job} still has a lease, of {standing.owner.name}")
    if is_clear and any(name.startswith(f"{job}.") for name in store.names("queue")):
        found.append(f"job {job} is still in the queue")
    lacking = [t for k, t in plan.tasks.items() if k in plan.targets and not store.has(t)]
    if standing.state == "completed" and lacking:
        found.append(f"job {job} is completed without {lacking[0].stage} of {lacking[0].label}")
    if is_watched:
        twice = _more_than_once(attempts)
        found += [f"task {task[:8]} of {job} succeeded {count} times" for task, count in twice.items()]
    return found


def _more_than_once(attempts: list[Attempt]) -> Mapping[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for attempt in attempts:
        counts[attempt.task] += attempt.outcome == "succeeded"
    return {task: count for task, count in counts.items() if count > 1}
