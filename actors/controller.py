"""The controller: one Ray actor that applies farm/'s decisions to the replicas. It never touches a tensor.

For every task that it hands out one coroutine lives from start to persisted artifact. All state is changed on the
actor's event loop only; what blocks (planning, the store) runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import ray

from farm.dispatch import Dispatcher
from farm.errors import StoreError
from farm.failure import Retry, after_failure
from farm.journal import Job, publish_film, read_job, write_attempt
from farm.plan import Plan, make_plan, tasks_to_run
from farm.pools import numerics, pools_from_json
from farm.store import Store
from farm.task import Attempt, Task

from .pool import Replicas, Slot, is_node_alive
from .rendering import Rendering
from .replica import Ran, Status

TICK_S = 1.0
MAX_ENDED = 100  # renderings that can still be asked for
NODE_LOSS_POLLS = 6  # half seconds
NAMESPACE = "longtake"


class Controller:
    """See the module. Methods are called by the doors; a rendering is named by its job, container and stills."""

    def __init__(self, store_uri: str, pools: dict[str, Any], package: str = "pipelines") -> None:
        self.store = Store(store_uri)
        self.pools = pools_from_json(pools)
        self.replicas = Replicas(self.pools, store_uri=store_uri, package=package)
        self.dispatcher = Dispatcher()
        self.renderings: dict[str, Rendering] = {}
        self.values: dict[str, Any] = {}  # key to a reference to the artifact's bytes, while somebody needs it
        self.attempts: dict[str, list[Attempt]] = {}
        self.queued_at: dict[str, float] = {}
        self.background: set[asyncio.Task[Any]] = set()
        self.words = itertools.count(1)  # to replicas, on their helpers
        self.is_open = self.closing = False

    async def open(self) -> list[str]:
        """Start the pools' least replicas and the clock. Returns the names of the pools."""
        if not self.is_open:
            self.is_open = True
            self._scale()
            self._spawn(self._tick_forever())
        return list(self.pools)

    async def submit(self, job_id: str, *, container: str, stills: bool) -> str:
        """Take on a job that lies in the store; one that is being rendered already is followed. Returns its name."""
        name = f"{job_id}.{container}{'.stills' if stills else ''}"
        planned = None
        if not self._is_active(name):
            planned = await asyncio.to_thread(self._plan, job_id, container, stills)
        if planned is not None and not self._is_active(name):  # else another door was faster
            await self._begin(name, *planned)
        self.renderings[name].followers += 1
        return name

    async def view(self, name: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a rendering stands: counts, what runs now, why it ended. Waits up to `wait_s` for news of it."""
        rendering = self.renderings[name]
        if wait_s and not rendering.is_over:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rendering.news.wait(), wait_s)
        rendering.news.clear()
        return rendering.view(self.replicas.slots.values())

    async def cancel(self, name: str) -> bool:
        """One door leaves. With the last one what runs for it alone ends between two steps; what exists stays.

        Returns whether the rendering was canceled: not where others follow it or it is over.
        """
        rendering = self.renderings[name]
        rendering.followers -= 1
        if rendering.is_over or rendering.followers > 0:
            return False
        orphans = set(self.dispatcher.drop_job(name))
        for slot in self.replicas.slots.values():
            if slot.busy in orphans:
                slot.handle.cancel.remote(slot.busy)
        rendering.end("canceled")
        return True

    async def is_quiet(self, name: str) -> bool:
        """Whether no attempt of a rendering is running or still to be written down."""
        return not self.renderings[name].in_flight

    async def list_replicas(self) -> list[dict[str, Any]]:
        """The replicas that exist, with the node and the process of each; no node where one is still starting."""
        slots = self.replicas.slots.values()
        return [{"name": s.name, "pool": s.pool, "node": s.node, "pid": s.pid, "busy": bool(s.busy)} for s in slots]

    async def close(self) -> None:
        """Stop all replicas; the controller itself is ended by whoever started it."""
        self.closing = True
        for slot in list(self.replicas.slots.values()):
            self.replicas.drop(slot)

    # -- films

    def _is_active(self, name: str) -> bool:
        return name in self.renderings and not self.renderings[name].is_over

    def _plan(self, job_id: str, container: str, stills: bool) -> tuple[Job, Plan, set[str]]:
        job = read_job(self.store, job_id)
        plan = make_plan(job.film, job.models, numerics(self.pools), container=container, stills=stills)
        return job, plan, tasks_to_run(plan.tasks, plan.targets, self.store.has)

    async def _begin(self, name: str, job: Job, plan: Plan, missing: set[str]) -> None:
        missing = {key for key in missing if not self.dispatcher.is_finished(key)}  # done while we looked
        is_alone = all(r.is_over for r in self.renderings.values())
        for old in [n for n, r in self.renderings.items() if r.is_over][:-MAX_ENDED]:
            del self.renderings[old]
        rendering = self.renderings[name] = Rendering(job, plan, missing)
        self.dispatcher.add_job(name, plan.tasks, missing)
        for key in missing:
            if not self.dispatcher.nodes[key].missing:
                self.queued_at.setdefault(key, time.time())
        if not missing:
            await self._finish(name, rendering, "completed")
        if is_alone:  # another film's replicas hold that film's model
            wanted = {(t.stage, t.model, t.components) for t in map(plan.tasks.__getitem__, missing) if t.model}
            for slot in self.replicas.slots.values():
                slot.handle.warm.remote([w for w in sorted(wanted) if w[0] in self.replicas.stages[slot.pool]])
        self._dispatch()

    async def _finish(self, name: str, rendering: Rendering, status: str) -> None:
        if rendering.is_over:
            return
        if status == "completed":
            try:
                rendering.film = await asyncio.to_thread(publish_film, self.store, rendering.job, rendering.plan)
            except (OSError, StoreError) as e:
                rendering.errors.append(f"the film could not be published: {e}")
                status = "failed"
        rendering.end(status)
        self.dispatcher.drop_job(name)
        for key in rendering.to_run:
            if key not in self.dispatcher.nodes:
                self.queued_at.pop(key, None)
            if not self.dispatcher.is_needed(key):
                self.values.pop(key, None)

    async def _settle(self, names: Iterable[str]) -> None:
        """End the renderings of which nothing is left to run."""
        for name in names:
            rendering = self.renderings[name]
            if rendering.done >= rendering.to_run:
                await self._finish(name, rendering, "completed")
            elif rendering.errors and self.dispatcher.is_settled(rendering.to_run):
                await self._finish(name, rendering, "failed")

    # -- replicas

    def _scale(self) -> None:
        for pool, stages in self.replicas.stages.items():
            waiting = sum(self.dispatcher.num_ready[stage] for stage in stages)
            for slot in self.replicas.scale(pool, waiting=waiting):
                self._spawn(self._welcome(slot))

    async def _welcome(self, slot: Slot) -> None:
        """Give a new replica work; where a pool has none at all and cannot get one, its films fail."""
        reason = await self.replicas.wait_for_start(slot)
        if not reason:
            self._dispatch()
        elif not any(other.node for other in self.replicas.of(slot.pool)):
            for name, rendering in list(self.renderings.items()):
                if not rendering.is_over:
                    rendering.errors.append(reason)
                    await self._finish(name, rendering, "failed")

    # -- tasks

    def _dispatch(self) -> None:
        if self.closing:
            return
        for slot in list(self.replicas.slots.values()):
            if not slot.node or slot.busy is not None:
                continue
            peers = [other for other in self.replicas.of(slot.pool) if other.node]
            task = self.dispatcher.take(
                self.replicas.stages[slot.pool], replica=slot.name, peers=[p.name for p in peers],
                idle=[p.name for p in peers if p.busy is None],
            )  # fmt: skip
            if task is not None:
                slot.busy = task.key
                self._take_back(slot)
                self._spawn(self._attempt(slot, task, self._wanted_by(task.key)))
        self._lend()
        self._scale()

    # -- lending: idle replicas predict slices of blended takes that others run

    def _lend(self) -> None:
        slots = list(self.replicas.slots.values())
        for owner in slots:
            node = self.dispatcher.nodes.get(owner.busy or "")
            num_slices = len(getattr(node.task.request, "slices", ())) if node is not None else 0
            if node is None or num_slices < 2 or not node.jobs:
                continue
            sources = self._wanted_by(node.task.key)[0].plan.inputs_of(node.task)
            idle = [s for s in slots if s.pool == owner.pool and s.node and s.busy is None and not s.lent_to]
            lent = sum(s.lent_to == node.task.key for s in slots)
            for slot in idle[: num_slices - 1 - lent]:
                slot.lent_to, slot.is_prepared = node.task.key, False
                self._spawn(self._prepare(slot, owner, node.task, sources))

    async def _prepare(self, slot: Slot, owner: Slot, task: Task, sources: list[Task]) -> None:
        try:
            inputs = [(source, self.values.get(source.key)) for source in sources]
            await slot.handle.prepare.remote(task, inputs)
        except ray.exceptions.RayError:  # it is not lent then; a dead one is found out by the next task it is given
            if slot.lent_to == task.key:
                slot.lent_to = ""
            return
        if slot.lent_to == task.key:
            slot.is_prepared = True
            self._tell_helpers(owner, task.key)

    def _take_back(self, slot: Slot) -> None:
        """Before a replica gets a task of its own, or when the take that it was lent to has ended."""
        key, slot.lent_to = slot.lent_to, ""
        if key:
            slot.idle_since = time.monotonic()
        for owner in self.replicas.slots.values():
            if key and owner.busy == key:
                self._tell_helpers(owner, key)

    def _tell_helpers(self, owner: Slot, key: str) -> None:
        ours = [s for s in self.replicas.slots.values() if s.lent_to == key and s.is_prepared]
        owner.handle.lend.remote(next(self.words), key, {s.name: s.handle for s in ours})

    def _wanted_by(self, key: str) -> list[Rendering]:
        return [self.renderings[name] for name in self.dispatcher.nodes[key].jobs]

    async def _attempt(self, slot: Slot, task: Task, wanted_by: list[Rendering]) -> None:
        """One try at a task, from hand-out to the persisted artifact and its row in the ledger."""
        for rendering in wanted_by:
            rendering.in_flight += 1
            rendering.working_since = rendering.working_since or time.time()
        try:
            ran, size = await self._run(slot, task, wanted_by[0].plan.inputs_of(task))
            attempt = self._record(slot, task, wanted_by[0].job.id, ran, size)
            told = {r.job.id for r in [*wanted_by, *self._wanted_by(task.key)]}
            with contextlib.suppress(OSError, StoreError):  # a lost row must not fail a film
                for job in told:
                    await asyncio.to_thread(write_attempt, self.store, replace(attempt, job=job))
            await self._conclude(task, attempt)
        finally:
            for rendering in wanted_by:
                rendering.in_flight -= 1
                rendering.news.set()
        self._dispatch()

    async def _run(self, slot: Slot, task: Task, sources: list[Task]) -> tuple[Ran, int]:
        """Let a replica compute and persist; how it went and the artifact's size in bytes."""
        asked_at = time.time()
        try:
            try:
                inputs = [(source, self.values.get(source.key)) for source in sources]
                ran: Ran = await slot.handle.run.remote(task, inputs)
            finally:
                slot.free()
                for helper in [s for s in self.replicas.slots.values() if s.lent_to == task.key]:
                    self._take_back(helper)
            if ran.outcome != "succeeded":
                if (damaged := ran.info.get("damaged")) and await self._revive(damaged, task.key):
                    return replace(ran, outcome="interrupted"), 0
                lost = ran.info.get("input_missing") and any(self.dispatcher.is_pending(s.key) for s in sources)
                return (replace(ran, outcome="interrupted") if lost else ran), 0
            if ran.value is not None:  # the next stage need not wait for the store
                self.values[task.key] = ran.value
                self._note_queued(self.dispatcher.computed(task.key))
            self._dispatch()
            return ran, await slot.handle.persist.remote(task.key)
        except ray.exceptions.ActorUnavailableError as e:
            self.replicas.drop(slot)
            return Ran("interrupted", asked_at, time.time(), reason=f"the replica cannot be reached: {e}"), 0
        except ray.exceptions.RayActorError as e:
            self.replicas.drop(slot)
            return await self._judge(slot, e, asked_at), 0
        except ray.exceptions.RayTaskError as e:  # the store refused
            return Ran("failed", asked_at, time.time(), reason=str(e.cause or e)[:2000]), 0

    async def _revive(self, damaged: str, user: str) -> bool:
        """Have an output made again that turned out to be damaged; False for what only its author can give."""
        for name in list(self.dispatcher.nodes[user].jobs):
            rendering = self.renderings[name]
            plan = rendering.plan
            if damaged not in plan.tasks:
                return False
            keys = await asyncio.to_thread(tasks_to_run, plan.tasks, [damaged], self.store.has)
            rendering.run_again(keys)
            self.dispatcher.revive(name, plan.tasks, keys)
        return True

    async def _judge(self, slot: Slot, error: Exception, asked_at: float) -> Ran:
        """A process that died counts as a failure; one that went with its node does not."""
        words = str(error).strip().splitlines()[0]
        for _ in range(NODE_LOSS_POLLS):  # a connection breaks some time before the cluster calls the node dead
            if self.closing or not is_node_alive(slot.node):
                return Ran("interrupted", asked_at, time.time(), reason=f"the replica's node was lost: {words}")
            await asyncio.sleep(0.5)
        return Ran("failed", asked_at, time.time(), reason=f"the replica's process died: {words}")

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

    async def _conclude(self, task: Task, attempt: Attempt) -> None:
        """Tell the dispatcher and the renderings how an attempt ended."""
        names = list(self.dispatcher.nodes[task.key].jobs)
        if attempt.outcome == "succeeded":
            self._note_queued(self.dispatcher.computed(task.key))
            for key in self.dispatcher.finished(task.key):
                self.values.pop(key, None)
            for name in names:
                self.renderings[name].count(task, attempt)
        elif attempt.outcome == "canceled" and names:  # canceled for a film that has come back since
            self.dispatcher.requeue(task.key)
        elif names:
            self._decide(task, [self.renderings[name] for name in names])
        if attempt.outcome == "succeeded" or not names:
            self.attempts.pop(task.key, None)
            self.dispatcher.forget(task.key)
        await self._settle(names)

    def _decide(self, task: Task, wanted_by: list[Rendering]) -> None:
        """After a failure: try again, or give up what needs the task; other shots go on."""
        self.values.pop(task.key, None)
        decision = after_failure(self.attempts[task.key])
        if isinstance(decision, Retry):
            self.queued_at[task.key] = time.time()
            if self.dispatcher.requeue(task.key, avoid=decision.avoid):
                for rendering in wanted_by:
                    rendering.num_retried += 1
            return
        self.dispatcher.fail(task.key)
        self.attempts.pop(task.key)
        for rendering in wanted_by:
            rendering.errors.append(f"{task.stage} of {task.label}: {decision.reason}")

    def _note_queued(self, freed: list[str]) -> None:
        self.queued_at.update(dict.fromkeys(freed, time.time()))

    # -- the clock

    async def _tick_forever(self) -> None:
        while not self.closing:
            await asyncio.sleep(TICK_S)
            busy = [slot for slot in self.replicas.slots.values() if slot.busy]
            await asyncio.gather(*(self._look_at(s) for s in busy))
            for rendering in self.renderings.values():
                rendering.news.set()
            self._scale()

    async def _look_at(self, slot: Slot) -> None:
        """Note what a replica is doing, and keep its preview where there is a new one."""
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError, OSError):
            status: Status = await asyncio.wait_for(slot.handle.status.remote(), 5.0)
            slot.status = status
            node = self.dispatcher.nodes.get(status.task or "")
            if node is None or not status.preview:
                return
            for rendering in self._wanted_by(node.task.key):
                path = f"jobs/{rendering.job.id}/preview-{node.task.label.replace('/', ' of ')}.png"
                kept = await asyncio.to_thread(self.store.publish, path, status.preview)
                rendering.previews[node.task.label] = kept

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            for rendering in self.renderings.values():
                if not rendering.is_over:
                    rendering.end("failed")
                    rendering.errors.append(f"the controller failed: {type(error).__name__}: {error}")


def start_controller(name: str, store_uri: str, pools: dict[str, Any], *, package: str = "pipelines") -> Any:
    """Join the farm of that name, or start it: a named, detached actor."""
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    handle = ray.remote(Controller).options(num_cpus=0, **options).remote(store_uri, pools, package)
    ray.get(handle.open.remote(), timeout=60)
    return handle
