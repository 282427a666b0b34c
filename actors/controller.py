"""The controller: one Ray actor that applies farm/'s decisions to the replicas. It never touches a tensor.

For every task that it hands out one coroutine lives from start to persisted artifact. All state is changed on the
actor's event loop only; what blocks (planning, the store) runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any

import ray

from farm.dispatch import Dispatcher
from farm.errors import StoreError
from farm.failure import GiveUp, after_failure
from farm.journal import Job, publish_film, read_job, write_attempt
from farm.plan import Plan, make_plan, tasks_to_run
from farm.pools import numerics, pools_from_json
from farm.store import Store
from farm.task import Attempt, Task

from .pool import Replicas, Slot, is_node_alive
from .replica import Ran
from .run import Run

TICK_S = 1.0
MAX_ENDED_RUNS = 100  # that can still be asked for
NAMESPACE = "longtake"


class Controller:
    """See the module. Methods are called by the doors."""

    def __init__(self, store_uri: str, pools: dict[str, Any], package: str = "pipelines") -> None:
        self.store = Store(store_uri)
        self.pools = pools_from_json(pools)
        self.replicas = Replicas(self.pools, store_uri=store_uri, package=package)
        self.dispatcher = Dispatcher()
        self.runs: dict[str, Run] = {}
        self.values: dict[str, Any] = {}  # key to a reference to the artifact's bytes, while somebody needs it
        self.attempts: dict[str, list[Attempt]] = {}
        self.queued_at: dict[str, float] = {}
        self.background: set[asyncio.Task[Any]] = set()
        self.is_open = self.closing = False

    async def open(self) -> list[str]:
        """Start the pools' least replicas and the clock. Returns the names of the pools."""
        if not self.is_open:
            self.is_open = True
            self._scale()
            self._spawn(self._tick_forever())
        return list(self.pools)

    async def submit(self, job_id: str, *, container: str, stills: bool) -> int:
        """Take on a job that lies in the store; a job that is being rendered is followed. Returns what must run."""
        planned = None
        if not self._is_active(job_id):
            planned = await asyncio.to_thread(self._plan, job_id, container, stills)
        if planned is None or self._is_active(job_id):  # another door may have been faster
            return len(self.runs[job_id].to_run)
        job, plan, missing = planned
        missing = {key for key in missing if not self.dispatcher.is_finished(key)}  # done while we looked
        is_alone = all(run.is_over for run in self.runs.values())
        run = self.runs[job_id] = Run(job, plan, missing)
        self.dispatcher.add_job(job_id, plan.tasks, missing)
        for key in missing:
            if not missing.intersection(plan.tasks[key].inputs):
                self.queued_at.setdefault(key, time.time())
        for old in [r for r in self.runs.values() if r.is_over][:-MAX_ENDED_RUNS]:
            del self.runs[old.job.id]
        if not missing:
            await self._finish(run, "completed")
        if is_alone:  # another film's replicas hold that film's model
            models = sorted({(plan.tasks[k].stage, plan.tasks[k].model) for k in missing if plan.tasks[k].model})
            for slot in self.replicas.slots.values():
                slot.handle.warm.remote([pair for pair in models if pair[0] in self.replicas.stages[slot.pool]])
        self._dispatch()
        return len(missing)

    def _is_active(self, job_id: str) -> bool:
        return job_id in self.runs and not self.runs[job_id].is_over

    async def view(self, job_id: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a job stands: counts, what runs now, and why it ended. Waits up to `wait_s` for news of it."""
        run = self.runs[job_id]
        if wait_s and not run.is_over:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.news.wait(), wait_s)
        run.news.clear()
        return run.view(self.replicas.slots.values())

    async def cancel(self, job_id: str) -> None:
        """Stop a job: what runs for it alone ends between two steps; what exists stays."""
        run = self.runs.get(job_id)
        if run is None or run.is_over:
            return
        orphans = set(self.dispatcher.drop_job(job_id))
        for slot in self.replicas.slots.values():
            if slot.busy in orphans:
                slot.handle.cancel.remote(slot.busy)
        run.end("canceled")

    async def list_replicas(self) -> list[dict[str, Any]]:
        """The replicas that exist, with the node and the process of each; no node where one is still starting."""
        slots = self.replicas.slots.values()
        return [{"name": s.name, "pool": s.pool, "node": s.node, "pid": s.pid, "busy": bool(s.busy)} for s in slots]

    async def is_idle(self) -> bool:
        is_over = all(run.is_over for run in self.runs.values())
        return is_over and not any(slot.busy for slot in self.replicas.slots.values())

    async def close(self) -> None:
        """Stop all replicas; the controller itself is ended by whoever started it."""
        self.closing = True
        for slot in list(self.replicas.slots.values()):
            self.replicas.drop(slot)

    # -- planning

    def _plan(self, job_id: str, container: str, stills: bool) -> tuple[Job, Plan, set[str]]:
        job = read_job(self.store, job_id)
        plan = make_plan(job.film, job.checkpoint, numerics(self.pools), container=container, stills=stills)
        return job, plan, tasks_to_run(plan.tasks, plan.targets, self.store.has)

    # -- replicas

    def _scale(self) -> None:
        for name, stages in self.replicas.stages.items():
            for slot in self.replicas.scale(name, waiting=self.dispatcher.num_ready(stages)):
                self._spawn(self._welcome(slot))

    async def _welcome(self, slot: Slot) -> None:
        """Give a new replica work; where a pool has none at all and cannot get one, its films fail."""
        reason = await self.replicas.wait_for_start(slot)
        if not reason:
            self._dispatch()
        elif not any(other.node for other in self.replicas.of(slot.pool)):
            for run in [r for r in self.runs.values() if not r.is_over]:
                run.errors.append(reason)
                await self._finish(run, "failed")

    # -- tasks

    def _dispatch(self) -> None:
        if self.closing:
            return
        for slot in list(self.replicas.slots.values()):
            if not slot.node or slot.busy is not None:
                continue
            others = len(self.replicas.of(slot.pool)) > 1
            task = self.dispatcher.take(self.replicas.stages[slot.pool], replica=slot.name, others=others)
            if task is not None:
                slot.busy, jobs = task.key, list(self.dispatcher.nodes[task.key].jobs)
                for job in jobs:
                    self.runs[job].working_since = self.runs[job].working_since or time.time()
                self._spawn(self._attempt(slot, task, jobs))
        self._scale()

    async def _attempt(self, slot: Slot, task: Task, jobs: list[str]) -> None:
        """One try at a task, from hand-out to the persisted artifact and its row in the ledger."""
        asked_at = time.time()
        size = 0
        sources = [self.runs[jobs[0]].plan.tasks[key] for key in task.inputs]
        try:
            inputs = [(source, self.values.get(source.key)) for source in sources]
            ran: Ran = await slot.handle.run.remote(task, inputs)
            slot.free()
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

    def _lost(self, slot: Slot, error: Exception, asked_at: float) -> Ran:
        self.replicas.drop(slot)
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
                run.count(task, attempt)
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
        if run.is_over:
            return
        if status == "completed":
            run.film = await asyncio.to_thread(publish_film, self.store, run.job, run.plan)
        run.end(status)
        self.dispatcher.drop_job(run.job.id)
        for key in run.to_run:
            self.queued_at.pop(key, None)
            if not self.dispatcher.is_needed(key):
                self.values.pop(key, None)

    # -- the clock

    async def _tick_forever(self) -> None:
        while not self.closing:
            await asyncio.sleep(TICK_S)
            busy = [slot for slot in self.replicas.slots.values() if slot.busy]
            await asyncio.gather(*(self._look_at(s) for s in busy))
            for run in self.runs.values():
                run.news.set()
            self._scale()

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
                    run.end("failed")
                    run.errors.append(f"the controller failed: {type(error).__name__}: {error}")


def start_controller(name: str, store_uri: str, pools: dict[str, Any], *, package: str = "pipelines") -> Any:
    """Join the farm of that name, or start it: a named, detached actor."""
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    handle = ray.remote(Controller).options(num_cpus=0, **options).remote(store_uri, pools, package)
    ray.get(handle.open.remote(), timeout=60)
    return handle
