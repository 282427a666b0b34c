"""The shortest time in which a graph of tasks can be done by given pools: what a makespan is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from farm.task import Task


def makespan_bound(
    tasks: Mapping[str, Task],
    *,
    seconds: Mapping[str, float],
    pool_of: Mapping[str, str],
    num_replicas: Mapping[str, int],
) -> float:
    """The longest chain, or for some pool: earliest possible start + work / replicas + shortest way on to the end.

    Args:
        tasks: every task after its inputs.
        seconds: run time by stage.
        pool_of: the pool that serves each stage.
    """
    before: dict[str, float] = {}  # the longest chain that must be done before a task
    for key, task in tasks.items():
        before[key] = max((before[k] + seconds[tasks[k].stage] for k in task.inputs), default=0.0)
    after: dict[str, float] = dict.fromkeys(tasks, 0.0)  # the longest chain from a task's end to the film's
    for key in reversed(list(tasks)):
        for source in tasks[key].inputs:
            after[source] = max(after[source], after[key] + seconds[tasks[key].stage])
    bound = max(before[k] + seconds[t.stage] + after[k] for k, t in tasks.items())
    for pool in set(pool_of.values()):
        mine = [k for k, t in tasks.items() if pool_of[t.stage] == pool]
        work = sum(seconds[tasks[k].stage] for k in mine)
        bound = max(bound, min(before[k] for k in mine) + work / num_replicas[pool] + min(after[k] for k in mine))
    return bound
