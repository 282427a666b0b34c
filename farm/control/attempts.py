"""Hands out tasks, and sees every attempt from hand-out to persisted artifact and its record.

For every task that is handed out one coroutine lives. What an attempt means for its jobs is for jobs.py to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from farm.control.crew import Crew
from farm.control.dispatch import Dispatcher
from farm.control.failure import GiveUp, Retry, after_failure
from farm.control.fleet import Fleet, Hands, Ran, Slot
from farm.control.lead import PATIENCE_S, RETRY_S, Io, Lead
from farm.control.loans import Loans
from farm.control.rendering import Rendering
from farm.errors import ReplicaLost, StoreError, StoreFull
from farm.plan.plan import tasks_to_run
from farm.pools.pools import Pool, memory_of, pools_serving
from farm.store.journal import Owner, write_attempt
from farm.store.store import Store
from farm.task import Attempt, Task

NODE_LOSS_POLLS, NODE_LOSS_POLL_S = 6, 0.5
MAX_OUTAGES = 200  # of the store, that one task may meet
AHEAD_S = 1.0  # a replica whose task takes at most so long is given its next one, as short, meanwhile


class JobBoard(Protocol):
    """What attempts need to know about the jobs that they are made for, and to tell them."""

    leads: dict[str, Lead]
    renderings: dict[str, Rendering]

    def spawn(self, work: Any) -> None:
        """Run a coroutine beside everything else."""

    async def write(self, lead: Lead) -> None:
        """Put a job's moves into its journal."""

    async def settle(self, names: Iterable[str]) -> None:
        """End the renderings of which nothing is left to run."""

    async def fail_all(self, reason: str) -> None:
        """End all renderings: there is nothing to run them on."""

    def look_if_quiet(self, lead: Lead) -> None:
        """An attempt has ended: a job that is to stop may have."""

    def note_full(self, reason: str) -> None:
        """The store has no room: hand out nothing until it has."""


class Attempts:
    """See the module."""

    def __init__(
        self, store: Store, pools: Mapping[str, Pool], hands: Hands, jobs: JobBoard, *, owner: Owner, io: Io,
        now: Callable[[], float], package: str,
    ) -> None:  # fmt: skip
        self.store, self.pools, self.hands, self.jobs = store, pools, hands, jobs
        self.owner, self.io, self.now = owner, io, now
        self.fleet = Fleet(pools, hands, store_uri=store.uri, package=package)
        self.dispatcher = Dispatcher()
        self.crew = Crew(
            self.fleet, self.dispatcher, now=now, spawn=jobs.spawn, on_start=self.dispatch,
            on_preview=self._keep_preview, on_hopeless=jobs.fail_all,
        )  # fmt: skip
        self.loans = Loans(self.fleet, self.dispatcher, self._sources, now)
        self.values: dict[str, Any] = {}  # key to a reference to the artifact's bytes, while somebody needs it
        self.tries: dict[str, list[Attempt]] = {}  # those that did not succeed, by task
        self.num_attempts = 0
        self.frugal: set[str] = set()  # tasks that are tried with as little memory as can be
        self.ahead_s = AHEAD_S
        self.queued_at: dict[str, float] = {}
        self.full = ""  # why nothing can be put into the store now
        self.room = asyncio.Event()
        self.on_attempt: Callable[[Attempt], None] = lambda attempt: None  # for whoever counts them

    def know(self, attempts: Iterable[Attempt], *, forgiven: set[str]) -> None:
        """Take in what an earlier controller has tried for a job."""
        for attempt in attempts:
            ours = self.tries.setdefault(attempt.task, [])
            is_known = any(a.attempt_id == attempt.attempt_id for a in ours)  # another job shares the task
            if attempt.outcome == "failed" and attempt.attempt_id not in forgiven and not is_known:
                ours.append(attempt)
            if attempt.info.get("frugal") or attempt.cause == "memory":
                self.frugal.add(attempt.task)

    def forget(self, key: str) -> None:
        """Of a task that nobody wants."""
        self.queued_at.pop(key, None)
        self.tries.pop(key, None)
        self.values.pop(key, None)
        self.frugal.discard(key)

    # -- handing out

    def dispatch(self) -> None:
        if self.fleet.closing or self.full:
            return
        slots = list(self.fleet.slots.values())
        for slot in [s for s in slots if s.is_free]:
            self._give_work(slot)
        for slot in [s for s in slots if self._is_free_soon(s)]:
            self._give_work(slot, fits=lambda task, slot=slot: self._expected_s(slot, task) <= self.ahead_s)
        for loan in self.loans.lend():
            self.jobs.spawn(self.loans.prepare(*loan))
        self.crew.scale()

    def _give_work(self, slot: Slot, **more: Any) -> None:
        peers = [other for other in self.fleet.of(slot.pool) if other.node and not other.is_leaving]
        task = self.dispatcher.take(
            self.fleet.stages[slot.pool], replica=slot.name, pool=slot.pool, peers=[p.name for p in peers],
            idle=[p.name for p in peers if p.busy is None], **more,
        )  # fmt: skip
        if task is not None:
            slot.give(task.key, self.now())
            self.loans.take_back(slot)
            self.jobs.spawn(self._attempt(slot, task, self.wanted_by(task.key)))

    def _is_free_soon(self, slot: Slot) -> bool:
        """Whether its task is so short that another one may wait behind it; never in a gang, whose ranks have to agree
        before a task is called off."""
        if slot.busy is None or slot.ahead or slot.is_leaving or self.pools[slot.pool].ranks > 1:
            return False
        expected_s = self._expected_s(slot, self.dispatcher.nodes[slot.busy].task)
        return max(expected_s, self.now() - slot.began[slot.busy]) <= self.ahead_s

    def _expected_s(self, slot: Slot, task: Task) -> float:
        return math.inf if task.key in self.frugal else slot.expected_s(task)  # which loads everything anew

    async def _keep_preview(self, task: Task, picture: bytes) -> None:
        for rendering in self.wanted_by(task.key):
            path = f"jobs/{rendering.job.id}/preview-{task.label.replace('/', ' of ')}.png"
            with contextlib.suppress(OSError, StoreError):
                rendering.previews[task.label] = await self.io(self.store.publish, path, picture)

    # -- tasks

    def wanted_by(self, key: str) -> list[Rendering]:
        return [self.jobs.renderings[name] for name in self.dispatcher.nodes[key].jobs]

    def _sources(self, task: Task, rendering: Rendering | None = None) -> list[tuple[Task, Any]]:
        plan = (rendering or self.wanted_by(task.key)[0]).plan
        return [(source, self.values.get(source.key)) for source in plan.inputs_of(task)]

    async def _attempt(self, slot: Slot, task: Task, wanted_by: list[Rendering]) -> None:
        """One try at a task, from hand-out to the persisted artifact and its record."""
        leads = [self.jobs.leads[r.job.id] for r in wanted_by if r.job.id in self.jobs.leads]
        for rendering in wanted_by:
            rendering.in_flight += 1
            rendering.working_since = rendering.working_since or self.now()
        for lead in leads:
            if lead.state == "queued":
                lead.move("hand out", f"{task.stage} of {task.label} to {slot.name}")
                self.jobs.spawn(self.jobs.write(lead))
        try:
            ran, size = await self._run(slot, task, wanted_by)
            attempt = self._record(slot, task, wanted_by[0], ran, size)
            self.on_attempt(attempt)
            for job in sorted({r.job.id for r in [*wanted_by, *self.wanted_by(task.key)]}):
                if job in self.jobs.leads:  # else another one drives it, or it has ended
                    told = replace(attempt, job=job, fence=self.jobs.leads[job].journal.fence)
                    with contextlib.suppress(OSError, StoreError):  # a lost row must not fail a film
                        await self.with_room(wanted_by, write_attempt, self.store, told, ran.details)
            await self._conclude(slot, task, attempt)
        finally:
            for rendering in wanted_by:
                rendering.in_flight -= 1
                rendering.news.set()
            for lead in leads:
                if lead is self.jobs.leads.get(lead.job):
                    self.jobs.look_if_quiet(lead)
        self.dispatch()

    async def _run(self, slot: Slot, task: Task, wanted_by: list[Rendering]) -> tuple[Ran, int]:
        """Let a replica compute and persist; how it went and the artifact's size in bytes."""
        sources = self._sources(task, wanted_by[0])
        try:
            try:
                ran = await self.hands.run(slot.handle, task, sources, frugal=task.key in self.frugal)
            except ReplicaLost:
                slot.ahead = None  # what waits there never begins
                raise
            finally:
                slot.take_off(task.key, self.now())
                self.loans.take_all_back(task.key)
            slot.began.setdefault(task.key, ran.started_at)  # its answer may have overtaken another
            if ran.info.get("leaving"):
                slot.is_leaving = True
            if ran.outcome != "succeeded":
                return await self._excused(ran, task, [source for source, _ in sources]), 0
            if not ran.info.get("resumed_at") and not ran.info.get("not_needed"):
                slot.note_pace(task, ran.ended_at - ran.started_at - ran.load_s)
            if ran.value is not None:  # the next stage need not wait for the store
                self.values[task.key] = ran.value
                self.note_queued(self.dispatcher.computed(task.key))
            slot.num_saving += 1
            self.dispatch()
            try:
                return ran, await self._persist(slot, task, wanted_by)
            finally:
                slot.num_saving -= 1
        except ReplicaLost as e:
            self.fleet.drop(slot)
            return await self._judge(slot, e, slot.began.get(task.key)), 0
        except (StoreError, OSError) as e:  # the store refused
            slot.is_leaving = True  # it may still hold what it could not put away
            began_at = slot.began.get(task.key, self.now())
            return Ran("failed", began_at, self.now(), reason=str(e)[:2000], cause="error"), 0
        finally:
            slot.began.pop(task.key, None)
            if slot.is_leaving:
                self.fleet.dismiss(slot)

    async def _excused(self, ran: Ran, task: Task, sources: list[Task]) -> Ran:
        """What failed because of the store, or because an input is gone, says nothing about the task."""
        if ran.info.get("store_out_of_order"):
            is_innocent = sum("store_out_of_order" in a.info for a in self.tries.get(task.key, ())) < MAX_OUTAGES
            await asyncio.sleep(RETRY_S)  # it would not be better at once
        else:
            is_innocent = bool(ran.info.get("input_missing")) and await self._look_for_inputs(task, sources)
        return replace(ran, outcome="interrupted", cause="") if is_innocent else ran

    async def _persist(self, slot: Slot, task: Task, wanted_by: list[Rendering]) -> int:
        size: int = await self.with_room(wanted_by, None, slot.handle, task.key)
        return size

    async def with_room(self, wanted_by: list[Rendering], work: Callable[..., Any] | None, *values: Any) -> Any:
        """Write to the store (`work`, or a replica does); when that is full or out of order, wait until it is not."""
        end = self.now() + PATIENCE_S
        while True:
            try:
                return await (self.io(work, *values) if work else self.hands.persist(*values))
            except StoreFull as e:
                self.jobs.note_full(str(e))
                for rendering in wanted_by:  # what waits for room does not run
                    rendering.in_flight -= 1
                try:
                    for lead in [x for x in self.jobs.leads.values() if x.state == "pausing"]:
                        self.jobs.look_if_quiet(lead)
                    await self.room.wait()
                finally:
                    for rendering in wanted_by:
                        rendering.in_flight += 1
                end = self.now() + PATIENCE_S
            except OSError:  # out of order for a while: what was made is not made again for that
                if self.now() > end:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _look_for_inputs(self, task: Task, sources: list[Task]) -> bool:
        """Have inputs that are missing, or were set aside as damaged, made again, where that is not being done.

        False where only the author of the film can give one.
        """
        lost = [s for s in sources if not self.dispatcher.is_pending(s.key) and not await self.io(self.store.has, s)]
        for rendering in self.wanted_by(task.key) if lost else ():
            tasks = rendering.plan.tasks
            if any(source.key not in tasks for source in lost):
                return False
            keys = await self.io(tasks_to_run, tasks, [source.key for source in lost], self.store.has)
            rendering.run_again(keys)
            self.dispatcher.revive(rendering.wish.name, tasks, keys)
        return True

    async def _judge(self, slot: Slot, error: ReplicaLost, began_at: float | None) -> Ran:
        """A process that died counts as a failure of what it had begun (at `began_at`); one that went with its node, or
        was told to leave, does not."""
        noticed_at = self.now()
        if began_at is None:
            reason = f"the replica ended before it began: {error}"
            return Ran("interrupted", noticed_at, noticed_at, reason=reason, info={"not_begun": True})
        if error.is_unreachable:
            return Ran("interrupted", began_at, noticed_at, reason=f"the replica cannot be reached: {error}")
        if slot.was_told:
            return Ran("interrupted", began_at, noticed_at, reason=f"the replica was told to leave: {error}")
        for _ in range(NODE_LOSS_POLLS):  # a connection breaks some time before the cluster calls the node dead
            if self.fleet.closing or not self.hands.is_node_alive(error.node or slot.node):
                return Ran("interrupted", began_at, noticed_at, reason=f"the replica's node was lost: {error}")
            await asyncio.sleep(NODE_LOSS_POLL_S)
        words = await self.hands.last_words(error.node or slot.node, slot.pid)
        return Ran(
            "failed", began_at, noticed_at, reason=f"the replica's process died: {error}", cause="died", details=words
        )

    def _record(self, slot: Slot, task: Task, first: Rendering, ran: Ran, size: int) -> Attempt:
        self.num_attempts += 1
        pool = self.pools[slot.pool]
        models = {m.place: m.name for m in first.job.models}
        attempt = Attempt(
            attempt_id=f"{task.key[:16]}-{self.owner.name}-{self.num_attempts}", job=first.job.id, task=task.key,
            stage=task.stage, label=task.label, pool=slot.pool, replica=slot.name, node=slot.node,
            queued_at=self.queued_at.get(task.key, ran.started_at), started_at=ran.started_at, ended_at=ran.ended_at,
            outcome=ran.outcome, reason=ran.reason, cause=ran.cause, model=models.get(task.model, ""),
            price_per_hour=pool.price_per_hour or 0.0, run_s=ran.ended_at - ran.started_at - ran.load_s,
            load_s=ran.load_s, gpus=pool.gpus * pool.ranks, peak_memory_bytes=ran.peak_memory_bytes,
            output_bytes=size, info=ran.info,
        )  # fmt: skip
        if attempt.outcome != "succeeded":
            self.tries.setdefault(task.key, []).append(attempt)
        return attempt

    async def _conclude(self, slot: Slot, task: Task, attempt: Attempt) -> None:
        """Tell the dispatcher and the renderings how an attempt ended."""
        names = list(self.dispatcher.nodes[task.key].jobs)
        if attempt.outcome == "succeeded":
            self.note_queued(self.dispatcher.computed(task.key))
            for key in self.dispatcher.finished(task.key):
                self.values.pop(key, None)
            for name in names:
                self.jobs.renderings[name].count(task, attempt)
        elif attempt.outcome == "canceled" and names:  # canceled for a film that has come back since
            self.dispatcher.requeue(task.key)
        elif names:
            self._decide(slot, task, attempt, [self.jobs.renderings[name] for name in names])
        if attempt.outcome == "succeeded" or not names:
            self.tries.pop(task.key, None)
            self.frugal.discard(task.key)
            self.dispatcher.forget(task.key)
            if not self.dispatcher.is_needed(task.key):
                self.values.pop(task.key, None)
        await self.jobs.settle(names)

    def _decide(self, slot: Slot, task: Task, attempt: Attempt, wanted_by: list[Rendering]) -> None:
        """After a failure: try again, or give up what needs the task; other shots go on."""
        self.values.pop(task.key, None)
        tries = self.tries[task.key]
        if attempt.cause in ("error", "died"):
            self.fleet.note_failure(slot, task.key)
        tried_on = {a.replica for a in tries if a.outcome == "failed"}
        others = [s for s in self.fleet.of(slot.pool) if s.name not in tried_on and not s.is_leaving]
        decision = after_failure(
            tries, memory={p: memory_of(self.pools[p]) for p in pools_serving(self.pools, task.stage)},
            is_alone=not others,
        )  # fmt: skip
        if isinstance(decision, Retry):
            if decision.frugal:
                self.frugal.add(task.key)
            self.queued_at[task.key] = self.now()
            event = "fail" if attempt.outcome == "failed" else "interrupt"
            if self.dispatcher.requeue(task.key, event=event, avoid=decision.avoid, pools=decision.pools):
                for rendering in wanted_by:
                    rendering.num_retried += not {"halted", "not_begun"}.intersection(attempt.info)
            if decision.restart and slot.name in self.fleet.slots:
                self.fleet.dismiss(slot)
            return
        self._give_up(task, decision, wanted_by)

    def _give_up(self, task: Task, decision: GiveUp, wanted_by: list[Rendering]) -> None:
        self.dispatcher.fail(task.key)
        for rendering in wanted_by:
            rendering.errors.append(f"{task.stage} of {task.label}: {decision.reason}")
            rendering.num_input_errors += decision.is_input

    def note_queued(self, freed: list[str]) -> None:
        self.queued_at.update(dict.fromkeys(freed, self.now()))
