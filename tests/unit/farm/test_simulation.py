"""Simulated worlds: the farm's own code in virtual time, with everything that goes wrong.

Half of the seeds are always the same; the other half come from the commit, so that every change is tried in new worlds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bound import makespan_bound

from farm.control import attempts, dispatch
from farm.control.attempts import AHEAD_S
from farm.control.control import Control
from farm.control.failure import Retry
from farm.control.fleet import Slot
from farm.errors import ReplicaLost
from farm.plan.plan import Plan, tasks_to_run
from farm.pools.pools import Bounds, Pool
from farm.store import journal
from farm.store.journal import read_attempts
from farm.task import Task
from farm.worlds.replica import SECONDS, SimReplica, end_replica
from farm.worlds.run import faults_of, faults_of_many, run
from farm.worlds.world import World

ROOT = Path(__file__).parents[3]


def seed_of_commit() -> int:
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )  # fmt: skip
    return int(told.stdout[:12] or "1", 16)


def seeds(count: int) -> list[int]:
    """Old ones and new ones by turns."""
    first = seed_of_commit() * 10**6
    return [seed for i in range(count // 2) for seed in (i, first + i)]


@pytest.mark.parametrize("part", range(10))
def test_a_hundred_worlds_end_well(part: int) -> None:
    """In ten parts, so that they spread over the cores; `make test-slow` has a thousand, `make endurance` ten."""
    assert [fault for seed in seeds(100)[part::10] for fault in faults_of(seed)] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_worlds_end_well() -> None:
    assert not list(faults_of_many(seeds(1000)[100:]))


@pytest.mark.endurance
@pytest.mark.timeout(7200)
def test_ten_thousand_worlds_end_well() -> None:
    assert not list(faults_of_many(seeds(10_000)))


def test_worlds_are_large_and_break_often_enough() -> None:
    for seed in range(20):
        world = World(seed)
        run(world)
        assert sum(len(plan.tasks) for plan in world.plans.values()) >= 100
        assert world.story.total() >= 10


def test_seeds_replay_exactly_in_another_process() -> None:
    code = (
        "from farm.worlds.run import run\nfrom farm.worlds.world import World\n"
        "for seed in range(110, 120): w = World(seed); run(w); print(w.trace.hexdigest(), w.loop.time())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": str(salt)}, text=True,
            capture_output=True, timeout=120, check=True,
        ).stdout
        for salt in (1, 2)
    }  # fmt: skip
    assert len(told) == 1


# -- faults of the farm itself: the worlds must find each


def first_faults(patch: Callable[[pytest.MonkeyPatch], None], *, worlds: int = 60) -> list[str]:
    """What is found in the first world in which anything is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        for seed in range(worlds):
            if faults := run(World(seed)):
                return faults
    return []


def without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Whoever finds its place in the log taken writes into the next one."""

    def put_next(store: Any, job: str, standing: Any, record: Any) -> bool:
        for known in journal.read_log(store, job, after=standing.position):
            standing.read(known)
        store.put_record(journal.log_path(job, standing.position + 1), record)
        standing.read(record)
        return True

    patch.setattr(journal, "_put_next", put_next)


def forgetting_to_requeue(patch: pytest.MonkeyPatch) -> None:
    requeue, count = dispatch.Dispatcher.requeue, [0]

    def forgetful(self: Any, key: str, **how: Any) -> bool:
        count[0] += 1
        return True if count[0] % 5 == 0 else requeue(self, key, **how)

    patch.setattr(dispatch.Dispatcher, "requeue", forgetful)


def counting_interruptions(patch: pytest.MonkeyPatch) -> None:
    decide = attempts.after_failure

    def strict(tries: Any, **facts: Any) -> Any:
        told = [replace(a, outcome="failed", cause=a.cause or "error") for a in tries]
        return decide(told, **facts)

    patch.setattr(attempts, "after_failure", strict)


def losing_what_was_paused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch.Dispatcher, "release_job", lambda self, job: self.held.discard(job))


def trying_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempts, "after_failure", lambda tries, **facts: Retry())


@pytest.mark.parametrize(
    "mistake",
    [without_the_fence, forgetting_to_requeue, counting_interruptions, losing_what_was_paused, trying_for_ever],
)
def test_the_worlds_find_mistakes(mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    assert first_faults(mistake)


# -- worlds in which nothing fails


def bounds_of(world: World) -> tuple[float, float, float]:
    """The makespan, the least that it could be, and the sum over pools of work / replicas plus the longest chain."""
    tasks = {key: task for plan in world.plans.values() for key, task in plan.tasks.items()}
    pool_of = {stage: name for name, pool in world.pools.items() for stage in pool.stages}
    replicas = {name: pool.replicas.max for name, pool in world.pools.items()}
    seconds = {stage: SECONDS[stage] for stage in pool_of}
    least = makespan_bound(tasks, seconds=seconds, pool_of=pool_of, num_replicas=replicas)
    work = dict.fromkeys(replicas, 0.0)
    chain: dict[str, float] = {}
    for key, task in tasks.items():
        work[pool_of[task.stage]] += seconds[task.stage]
        chain[key] = seconds[task.stage] + max((chain[k] for k in task.inputs if k in chain), default=0.0)
    return world.makespan_s, least, sum(work[name] / count for name, count in replicas.items()) + max(chain.values())


def needed(plan: Plan) -> set[str]:
    return tasks_to_run(plan.tasks, plan.targets, lambda task: False)


def test_without_faults_work_is_done_once_and_about_as_fast_as_it_can_be() -> None:
    ratios = []
    for seed in range(40):
        world = World(seed, num_faults=0)
        assert run(world) == []
        makespan_s, least, most = bounds_of(world)
        assert makespan_s <= most + 10.0  # replicas start, and doors knock, within some seconds
        ratios.append(makespan_s / least)
        ran = {a.attempt_id: a.task for w in world.wishes for a in journal.read_attempts(world.store, w.job)}
        plans = world.plans.values()
        assert sorted(ran.values()) == sorted(set().union(*(needed(plan) for plan in plans)))
    assert statistics.median(ratios) <= 1.10


def test_a_job_of_higher_priority_is_never_behind_one_that_waits_for_the_same_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every hand-out no ready task of the same stage belongs to a more important job."""
    take = dispatch.Dispatcher.take
    handed = []

    def watched(self: Any, stages: Any, **who: Any) -> Any:
        stages = list(stages)
        ready = [n for n in self.nodes.values() if n.is_ready and n.task.stage in stages and not n.task.near]
        task = take(self, stages, **who)
        if task is not None:
            given = max(self.nodes[task.key].jobs.values())
            free = [n for n in ready if not n.avoid and not n.pools]
            assert given >= max((max(n.jobs.values()) for n in free), default=0)
            handed.append(task)
        return task

    monkeypatch.setattr(dispatch.Dispatcher, "take", watched)
    for seed in range(10):
        assert run(World(seed, num_faults=0)) == []
    assert len(handed) > 1000


def test_a_control_can_be_changed_for_a_world() -> None:
    """The hook that mistakes of single controllers go through."""
    seen: list[Control] = []
    run(World(3, control=seen.append))
    assert seen


def test_replicas_that_are_lost_together_while_they_start_count_as_one_failure() -> None:
    lost: list[str] = []

    def unlucky(control: Control) -> None:
        place = control.hands.place

        async def place_or_lose(replica: SimReplica) -> tuple[str, int]:
            if replica.spec.pool == "denoise" and len(lost) < 8:
                lost.append(replica.spec.name)
                await asyncio.sleep(1.0)
                raise ReplicaLost("its node went")
            return await place(replica)

        control.hands.place = place_or_lose

    world = World(3, num_faults=0, min_tasks=1, control=unlucky)
    world.pools["denoise"] = Pool(stages=["denoise"], replicas=Bounds(min=4, max=4))
    assert not run(world)
    assert len(lost) == 8 and set(world.ended_as) == {"completed"}


def test_a_pool_whose_replicas_never_start_fails_its_films() -> None:
    def hopeless(control: Control) -> None:
        async def place(replica: SimReplica) -> tuple[str, int]:
            raise ReplicaLost("it cannot start here")

        control.hands.place = place

    world = World(3, num_faults=0, min_tasks=1, control=hopeless)
    run(world)
    assert set(world.ended_as) == {"failed"}


def test_a_gang_halts_when_the_node_of_any_of_its_ranks_is_to_go() -> None:
    world = World(3, num_faults=0, min_tasks=1)
    work = world.make_instance().control.work
    world.loop.close()
    halted: list[str] = []
    work.hands.draining = lambda: ["b"]
    work.hands.halt = lambda handle, key: halted.append(key)
    for name, nodes in (("one", ("a", "b")), ("two", ("a", "c"))):
        work.fleet.slots[name] = Slot(name, "denoise", None, node="a", other_nodes=nodes, busy=name)
    work.crew.leave_draining_nodes()
    assert halted == ["one"]
    assert [s.is_leaving for s in work.fleet.slots.values()] == [True, False]


def handed_ahead(world: World, control: Control, told: Callable[[SimReplica, str, str], None]) -> None:
    """Tell of every task that is handed to a replica while that has another: of that one's stage, and of its own."""
    run, tasks = control.hands.run, {k: t for plan in world.plans.values() for k, t in plan.tasks.items()}

    async def watched(replica: SimReplica, task: Task, inputs: Any, *, frugal: bool) -> Any:
        if replica.task:
            told(replica, tasks[replica.task].stage, task.stage)
        return await run(replica, task, inputs, frugal=frugal)

    control.hands.run = watched


def world_of(pools: dict[str, list[str]], told: Callable[[SimReplica, str, str], None]) -> World:
    """One without faults, and with one replica in each pool."""
    world = World(11, num_faults=0, min_tasks=200, control=lambda control: handed_ahead(world, control, told))
    one = Bounds(min=1, max=1)
    world.pools = {name: Pool(stages=stages, replicas=one) for name, stages in pools.items()}
    return world


MEDIA = ["decode", "interpolate", "assemble"]


@pytest.mark.parametrize(("ahead_s", "short"), [(0.0, set()), (AHEAD_S, {"assemble"}), (4.0, {"assemble", "decode"})])
def test_only_a_short_task_waits_and_only_behind_a_short_one(ahead_s: float, short: set[str]) -> None:
    seen = set[tuple[str, str]]()
    world = world_of({"model": ["encode", "denoise"], "media": MEDIA}, lambda _, *stages: seen.add(stages))
    world.ahead_s = ahead_s
    assert not run(world)
    assert {stage for pair in seen for stage in pair} - {"encode"} == short  # which is short, too, and seldom queued


def test_nothing_waits_behind_a_task_that_takes_longer_than_it_should() -> None:
    world = World(11, num_faults=0, min_tasks=1)
    work, plan, now = world.make_instance().control.work, next(iter(world.plans.values())), [0.0]
    world.loop.close()
    work.now = lambda: now[0]
    slot = work.fleet.slots["one"] = Slot("one", "encode", None, node="a")
    work.dispatcher.add_job("job", plan.tasks, set(plan.tasks))
    task = work.dispatcher.take(["encode"], replica="one", peers=["one"])
    assert task is not None
    slot.give(task.key, 0.0)
    assert not work._is_free_soon(slot)  # nothing is known of such tasks
    slot.note_pace(task, 0.5)
    assert work._is_free_soon(slot)
    now[0] = AHEAD_S + 0.1
    assert not work._is_free_soon(slot)


def test_a_task_that_waited_behind_another_in_a_replica_that_ends_has_not_failed() -> None:
    ended: list[SimReplica] = []

    def end_once(replica: SimReplica, *stages: str) -> None:
        if not ended:
            ended.append(replica)
            world.loop.call_later(0.1, end_replica, replica)

    world = world_of({"encode": ["encode"], "denoise": ["denoise"], "media": MEDIA}, end_once)
    assert not run(world)
    tries = {a.attempt_id: a for wish in world.wishes for a in read_attempts(world.store, wish.job)}
    told = sorted((a.outcome, a.cause, a.reason) for a in tries.values() if a.outcome != "succeeded")
    assert told == [
        ("failed", "died", "the replica's process died: its process ended"),
        ("interrupted", "", "the replica ended before it began: its process ended"),
    ]
