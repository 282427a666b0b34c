"""What must hold when a world has ended: the farm's promises, seen from what the world knows."""

from __future__ import annotations

from farm.control.failure import MAX_FAILURES
from farm.plan.plan import Plan
from farm.pools.pools import pools_serving
from farm.store.journal import read_standing
from farm.worlds.audit import faults_of_job
from farm.worlds.weather import content_of
from farm.worlds.world import World


def faults_in(world: World) -> list[str]:
    """All that must hold once a world has ended and does not."""
    found = []
    for wish in world.wishes:
        plan = world.plans[wish.name]
        found += faults_of_job(world.store, wish.job, plan, is_watched=not world.had_two, is_clear=False)
        if world.adopts and any(name.startswith(f"{wish.job}.") for name in world.store.names("queue")):
            found.append(f"job {wish.job} is still in the queue")
        if world.adopts and any(wish.job in name for name in world.store.names(f"open/{wish.by}")):
            found.append(f"job {wish.job} is still counted as open")
        standing = read_standing(world.store, wish.job)
        for task in plan.tasks.values():
            if world.store.has(task) and world.store.read(task) != content_of(task):
                found.append(f"artifact {task.key[:8]} has other content than it must")
        lost = _lost_by_nature(world, plan)
        unlucky = any(world.true_failures[key] >= MAX_FAILURES for key in plan.tasks)
        if standing.state == "failed" and not (lost or unlucky):
            found.append(f"job {wish.job} failed for no reason of its own: {standing.reason}")
        if standing.state == "completed" and lost.intersection(plan.targets):
            found.append(f"job {wish.job} is completed although it cannot be")
        if standing.state == "canceled" and wish.job not in world.ordered_to_end:
            found.append(f"job {wish.job} was canceled and nobody asked for it")
        if standing.state == "failed" and not unlucky:
            lacking = [k for k in plan.targets if k not in lost and not world.store.has(plan.tasks[k])]
            found += [f"{plan.tasks[k].label} was not finished though nothing was in its way" for k in lacking]
    return found


def _lost_by_nature(world: World, plan: Plan) -> set[str]:
    """Tasks that no farm could do: bad input, too little memory everywhere, and what needs them."""
    lost: set[str] = set()
    large = "large" in world.pools
    for key, task in plan.tasks.items():
        is_hungry = world.hungry.get(key, 0) == 2 and not (large and "large" in pools_serving(world.pools, task.stage))
        if key in world.poison or is_hungry or lost.intersection(task.inputs):
            lost.add(key)
    return lost
