"""The controller: one Ray actor that applies farm/'s decisions to the replicas. It never touches a tensor.

For every task that it hands out one coroutine lives from start to persisted artifact. All state is changed on the
actor's event loop only; what blocks (planning, the store) runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from farm.dispatch import Dispatcher
from farm.errors import PlacementError, StoreError
from farm.failure import GiveUp, after_failure
from farm.journal import Job, publish_film, read_job, write_attempt
from farm.plan import Plan, make_plan, tasks_to_run
from farm.pools import Pool, asked, numerics, pools_from_json, stages_of
from farm.scaling import may_leave, num_replicas_wanted
from farm.store import Store
from farm.task import Attempt, Task

from .pool import cluster_nodes, is_node_alive, start_replica, stop_replica
from .replica import Ran, Status

TICK_S = 1.0
NAMESPACE = "longtake"


@dataclass
class Slot:
    """One replica as the controller sees it."""

    name: str
    pool: str
    handle: Any
    asked_at: float
    node: str = ""  # empty until it has started
    pid: int = 0
    busy: str | None = None  # key of the task it runs
    idle_since: float = 0.0
    status: Status | None = None


@dataclass
class Run:
    """One film being rendered."""

    job: Job
    plan: Plan
    to_run: set[str]
    cost: float  # of all that must run
    started_at: float
    status: str = "active"
    run: int = 0
    retried: int = 0
    stage_s: dict[str, float] = field(default_factory=dict)
    cost_done: float = 0.0
    first_step_at: float | None = None
    errors: list[str] = field(default_factory=list)
    film: str = ""
    previews: dict[str, str] = field(default_factory=dict)  # label to path in the store
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "failed", "canceled")


class Controller:
    """See the module. Methods are called by the doors."""

    def __init__(self, store_uri: str, pools: dict[str, Any], package: str = "pipelines") -> None:
        self.store, self.package = Store(store_uri), package
        self.pools: dict[str, Pool] = pools_from_json(pools)
        self.stages = {name: stages_of(self.pools, name) for name in self.pools}
        self.dispatcher = Dispatcher()
        self.runs: dict[str, Run] = {}
        self.slots: dict[str, Slot] = {}
        self.values: dict[str, Any] = {}  # key to a reference to the artifact's bytes, while somebody needs it
        self.attempts: dict[str, list[Attempt]] = {}
        self.queued_at: dict[str, float] = {}
        self.numbers = itertools.count()
        self.background: set[asyncio.Task[Any]] = set()
        self.is_open = self.closing = False

    async def open(self) -> list[str]:
        """Start the pools' least replicas and the clock. Returns the names of the pools."""
        if not self.is_open:
            self.is_open = True
            for name in self.pools:
                self._scale(name)
            self._spawn(self._tick_forever())
        return list(self.pools)

    async def submit(self, job_id: str, *, container: str, stills: bool) -> int:
        """Take on a job that lies in the store; a job that is being rendered is followed. Returns what must run."""
        previous = self.runs.get(job_id)
        if previous is not None and not previous.is_over:
            return len(previous.to_run)
        job, plan, missing = await asyncio.to_thread(self._plan, job_id, container, stills)
        cost = sum(plan.tasks[key].cost for key in missing)
        is_alone = all(run.is_over for run in self.runs.values())
        run = self.runs[job_id] = Run(job, plan, missing, cost or 1.0, time.time())
        self.dispatcher.add_job(job_id, plan.tasks, missing)
        for key in missing:
            if not missing.intersection(plan.tasks[key].inputs):
                self.queued_at.setdefault(key, time.time())
        if not missing:
            await self._finish(run, "completed")
        if is_alone:  # another film's replicas hold that film's model
            models = sorted({(plan.tasks[k].stage, plan.tasks[k].model) for k in missing if plan.tasks[k].model})
            for slot in self.slots.values():
                slot.handle.warm.remote([pair for pair in models if pair[0] in self.stages[slot.pool]])
        self._dispatch()
        return len(missing)

    async def view(self, job_id: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a job stands: counts, what runs now, and why it ended. Waits up to `wait_s` for news of it."""
        run = self.runs[job_id]
        if wait_s and not run.is_over:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.news.wait(), wait_s)
        run.news.clear()
        running = []
        for slot in self.slots.values():
            task = run.plan.tasks.get(slot.busy or "")
            if task is not None:
                seen = slot.status if slot.status and slot.status.task == task.key else Status(task.key, 0, 1, b"")
                running.append(
                    {"stage": task.stage, "label": task.label, "pool": slot.pool, "replica": slot.name,
                     "step": seen.step, "num_steps": seen.num_steps}
                )  # fmt: skip
        elapsed = time.time() - run.started_at
        left = elapsed * (run.cost - run.cost_done) / run.cost_done if run.cost_done else None
        return {
            "status": run.status, "errors": list(run.errors), "film": run.film, "running": running,
            "total": len(run.plan.tasks), "to_run": len(run.to_run), "run": run.run, "retried": run.retried,
            "stage_s": dict(run.stage_s), "left_s": left, "done": run.cost_done / run.cost,
            "starting": [s.name for s in self.slots.values() if not s.node], "previews": dict(run.previews),
            "first_step_at": run.first_step_at,
        }  # fmt: skip

    async def cancel(self, job_id: str) -> None:
        """Stop a job: what runs for it alone ends between two steps; what exists stays."""
        run = self.runs.get(job_id)
        if run is None or run.is_over:
            return
        orphans = set(self.dispatcher.drop_job(job_id))
        for slot in self.slots.values():
            if slot.busy in orphans:
                slot.handle.cancel.remote(slot.busy)
        run.status = "canceled"
        run.news.set()

    async def replicas(self) -> list[dict[str, Any]]:
        """The replicas that exist, with the node and the process of each."""
        return [{"name": s.name, "pool": s.pool, "node": s.node, "pid": s.pid} for s in self.slots.values()]

    async def is_idle(self) -> bool:
        return all(run.is_over for run in self.runs.values()) and not any(s.busy for s in self.slots.values())

    async def close(self) -> None:
        """Stop all replicas; the controller itself is ended by whoever started it."""
        self.closing = True
        for slot in list(self.slots.values()):
            self._drop(slot)

    # -- planning

    def _plan(self, job_id: str, container: str, stills: bool) -> tuple[Job, Plan, set[str]]:
        job = read_job(self.store, job_id)
        plan = make_plan(job.film, job.checkpoint, numerics(self.pools), container=container, stills=stills)
        return job, plan, tasks_to_run(plan.tasks, plan.targets, self.store.has)

    # -- replicas

    def _scale(self, name: str) -> None:
        pool, slots = self.pools[name], [s for s in self.slots.values() if s.pool == name]
        busy = sum(s.busy is not None for s in slots)
        waiting = self.dispatcher.num_ready(self.stages[name])
        wanted = num_replicas_wanted(waiting=waiting, busy=busy, least=pool.replicas.min, most=pool.replicas.max)
        for _ in range(wanted - len(slots)):
            replica = f"{name}-{next(self.numbers)}"
            handle = start_replica(replica, self.pools, name, store_uri=self.store.uri, package=self.package)
            slot = self.slots[replica] = Slot(replica, name, handle, asked_at=time.monotonic())
            self._spawn(self._await_start(slot))
        idle = [s for s in slots if s.node and s.busy is None]
        for slot in idle:
            if may_leave(idle_s=time.monotonic() - slot.idle_since, num_replicas=len(slots), wanted=wanted):
                self._drop(slot)
                slots.remove(slot)

    async def _await_start(self, slot: Slot) -> None:
        timeout_s = self.pools[slot.pool].start_timeout_s
        reason = ""
        try:
            slot.node, slot.pid = await asyncio.wait_for(slot.handle.where.remote(), timeout_s)
        except TimeoutError:
            pool = self.pools[slot.pool]
            has = "; ".join(f"{n.cpus:g} CPU, {n.gpus:g} GPU" for n in cluster_nodes())
            reason = f"pool {slot.pool} asked for {asked(pool)} and got none in {timeout_s:g} s; the nodes have {has}"
        except ray.exceptions.RayError as e:
            reason = f"a replica of pool {slot.pool} could not start: {str(e).strip().splitlines()[-1]}"
        if reason:
            self._drop(slot)
            await self._fail_all(PlacementError(reason))
            return
        slot.idle_since = time.monotonic()
        self._dispatch()

    def _drop(self, slot: Slot) -> None:
        self.slots.pop(slot.name, None)
        stop_replica(slot.handle)

    # -- tasks

    def _dispatch(self) -> None:
        if self.closing:
            return
        for slot in list(self.slots.values()):
            if not slot.node or slot.busy is not None:
                continue
            others = sum(s.pool == slot.pool for s in self.slots.values()) > 1
            task = self.dispatcher.take(self.stages[slot.pool], replica=slot.name, others=others)
            if task is not None:
                slot.busy = task.key
                self._spawn(self._attempt(slot, task))
        for name in self.pools:
            self._scale(name)

    async def _attempt(self, slot: Slot, task: Task) -> None:
        """One try at a task, from hand-out to the persisted artifact and its row in the ledger."""
        jobs = list(self.dispatcher.nodes[task.key].jobs)
        asked_at = time.time()
        size = 0
        sources = [self.runs[jobs[0]].plan.tasks[key] for key in task.inputs]
        try:
            inputs = [(source, self.values.get(source.key)) for source in sources]
            ran: Ran = await slot.handle.run.remote(task, inputs)
            self._free(slot)
            if ran.outcome == "succeeded":
                if ran.value is not None:  # the next stage need not wait for the store
                    self.values[task.key] = ran.value
                    self._release(self.dispatcher.computed(task.key))
                self._dispatch()
                size = await slot.handle.persist.remote(task.key)
        except ray.exceptions.RayActorError as e:
            ran = self._lost(slot, e, asked_at)
        except ray.exceptions.RayTaskError as e:  # the store refused
            ran = Ran("failed", asked_at, time.time(), reason=str(e.cause or e)[:2000])
        attempt = self._record(slot, task, jobs[0], ran, size)
        self._spawn(self._write(attempt, jobs))
        await self._conclude(task, attempt)
        self._dispatch()

    def _free(self, slot: Slot) -> None:
        slot.busy, slot.idle_since, slot.status = None, time.monotonic(), None

    def _lost(self, slot: Slot, error: Exception, asked_at: float) -> Ran:
        self._drop(slot)
        died = slot.node and is_node_alive(slot.node)
        words = str(error).strip().splitlines()[0]
        if died and not self.closing:
            return Ran("failed", asked_at, time.time(), reason=f"the replica's process died: {words}")
        return Ran("interrupted", asked_at, time.time(), reason=f"the replica's node was lost: {words}")

    def _record(self, slot: Slot, task: Task, job: str, ran: Ran, size: int) -> Attempt:
        tries = self.attempts.setdefault(task.key, [])
        attempt = Attempt(
            attempt_id=f"{task.key[:16]}-{int(ran.started_at * 1000):x}-{len(tries)}", job=job, task=task.key,
            stage=task.stage, label=task.label, pool=slot.pool, replica=slot.name, node=slot.node,
            queued_at=self.queued_at.get(task.key, ran.started_at), started_at=ran.started_at, ended_at=ran.ended_at,
            outcome=ran.outcome, reason=ran.reason, run_s=ran.ended_at - ran.started_at - ran.load_s, load_s=ran.load_s,
            gpus=self.pools[slot.pool].gpus, peak_memory_bytes=ran.peak_memory_bytes, output_bytes=size, info=ran.info,
        )  # fmt: skip
        tries.append(attempt)
        return attempt

    async def _write(self, attempt: Attempt, jobs: list[str]) -> None:
        with contextlib.suppress(OSError, StoreError):  # a lost row must not fail a film
            for job in jobs:
                await asyncio.to_thread(write_attempt, self.store, replace(attempt, job=job))

    async def _conclude(self, task: Task, attempt: Attempt) -> None:
        """Tell the dispatcher and the jobs how an attempt ended."""
        node = self.dispatcher.nodes[task.key]
        runs = [self.runs[job] for job in node.jobs]
        if attempt.outcome == "succeeded":
            self._release(self.dispatcher.computed(task.key))
            for key in self.dispatcher.finished(task.key):
                self.values.pop(key, None)
            for run in runs:
                self._count(run, task, attempt)
        elif attempt.outcome == "canceled" and runs:  # canceled for a job that has come back since
            self.dispatcher.requeue(task.key)
        elif runs:
            self._decide(task, runs)
        if not runs:
            self.dispatcher.forget(task.key)
        if attempt.outcome == "succeeded" or not runs:
            self.attempts.pop(task.key, None)
        for run in runs:
            if run.run >= len(run.to_run):
                await self._finish(run, "completed")
            elif run.errors and self.dispatcher.is_settled(run.to_run):
                await self._finish(run, "failed")

    def _release(self, freed: list[str]) -> None:
        self.queued_at.update(dict.fromkeys(freed, time.time()))

    def _count(self, run: Run, task: Task, attempt: Attempt) -> None:
        run.run += 1
        run.cost_done += task.cost
        run.stage_s[task.stage] = run.stage_s.get(task.stage, 0.0) + attempt.run_s
        if task.stage == "denoise" and (at := attempt.info.get("first_step_at")):
            run.first_step_at = min(run.first_step_at or at, at)

    def _decide(self, task: Task, runs: list[Run]) -> None:
        """After a failure: try again, or give up what needs the task; other shots go on."""
        decision = after_failure(self.attempts[task.key])
        if isinstance(decision, GiveUp):
            self.dispatcher.fail(task.key)
            self.attempts.pop(task.key)
            for run in runs:
                run.errors.append(f"{task.stage} of {task.label}: {decision.reason}")
            return
        self.queued_at[task.key] = time.time()
        self.dispatcher.requeue(task.key, avoid=decision.avoid)
        for run in runs:
            run.retried += 1

    async def _finish(self, run: Run, status: str) -> None:
        if status == "completed":
            run.film = await asyncio.to_thread(publish_film, self.store, run.job, run.plan)
        run.status = status
        run.news.set()
        self.dispatcher.drop_job(run.job.id)
        for key in run.to_run:
            self.queued_at.pop(key, None)
            if not self.dispatcher.is_needed(key):
                self.values.pop(key, None)

    async def _fail_all(self, error: PlacementError) -> None:
        for run in self.runs.values():
            if not run.is_over:
                run.errors.append(str(error))
                await self._finish(run, "failed")

    # -- the clock

    async def _tick_forever(self) -> None:
        while not self.closing:
            await asyncio.sleep(TICK_S)
            busy = [s for s in self.slots.values() if s.busy]
            await asyncio.gather(*(self._look_at(s) for s in busy))
            for run in self.runs.values():
                run.news.set()
            for name in self.pools:
                self._scale(name)

    async def _look_at(self, slot: Slot) -> None:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            status = await asyncio.wait_for(slot.handle.status.remote(), 5.0)
            slot.status = status
            node = self.dispatcher.nodes.get(status.task or "")
            for job in node.jobs if node else ():
                if status.preview and node:
                    path = f"jobs/{job}/preview-{node.task.label}.png"
                    kept = await asyncio.to_thread(self.store.publish, path, status.preview)
                    self.runs[job].previews[node.task.label] = kept

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            for run in self.runs.values():
                if not run.is_over:
                    run.status = "failed"
                    run.news.set()
                    run.errors.append(f"the controller failed: {type(error).__name__}: {error}")


def start_controller(name: str, store_uri: str, pools: dict[str, Any], *, package: str = "pipelines") -> Any:
    """Join the farm of that name, or start it: a named, detached actor."""
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    handle = ray.remote(Controller).options(num_cpus=0, **options).remote(store_uri, pools, package)
    ray.get(handle.open.remote(), timeout=60)
    return handle
