"""The jobs that a controller drives: taken on, begun, paused, ended, or lost to another controller.

A controller may die between any two writes; another one rebuilds everything from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from farm.control.attempts import Attempts
from farm.control.fleet import Hands
from farm.control.lead import Io, Lead
from farm.control.rendering import Rendering
from farm.errors import DamagedError, LeaseLost, StoreError, StoreFull
from farm.plan.plan import Plan, make_plan, tasks_to_run
from farm.pools.pools import Pool, numerics
from farm.states import ENDED
from farm.store import ledger
from farm.store.jobs import Job, publish_film, read_job
from farm.store.journal import (
    Held,
    Owner,
    Wish,
    drop_wish,
    look_at_lease,
    new_orders,
    read_attempts,
    take_lease,
    write_wish,
)
from farm.store.store import Store

log = logging.getLogger(__name__)
MAX_MENDED = 3  # times that a film is made whole again before it fails
MAX_ENDED = 100  # renderings that can still be asked for
ROOM_S, MAX_ROOM_S = 5.0, 60.0  # between looks at a full store
Planned = tuple[Job, Plan, set[str]]


def plan_wish(store: Store, pools: Mapping[str, Pool], wish: Wish) -> Planned:
    """A job that lies in the store, its plan, and what of it is missing."""
    job = read_job(store, wish.job)
    plan = make_plan(job.film, job.models, numerics(pools), container=wish.container, stills=wish.stills)
    return job, plan, tasks_to_run(plan.tasks, plan.targets, store.has)


class Jobs:
    """See the module; one rendering of a job is named by its wish."""

    def __init__(
        self, store: Store, pools: Mapping[str, Pool], hands: Hands, *, owner: Owner, io: Io, now: Callable[[], float],
        package: str, is_dead: Callable[[Owner], bool], plan: Callable[..., Planned],
    ) -> None:  # fmt: skip
        self.store, self.pools, self.hands, self.owner = store, dict(pools), hands, owner
        self.io, self.now, self.is_dead, self.plan = io, now, is_dead, plan
        self.work = Attempts(store, self.pools, hands, self, owner=owner, io=io, now=now, package=package)
        self.dispatcher, self.fleet = self.work.dispatcher, self.work.fleet
        self.leads: dict[str, Lead] = {}
        self.renderings: dict[str, Rendering] = {}
        self.gates: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by job: comes and goes one at a time
        self.background: dict[asyncio.Task[Any], None] = {}  # in order, so that a simulated world lives again as it did
        self.on_end: Callable[[str, int, float], None] = lambda outcome, frames, seconds: None  # of a film

    def is_active(self, name: str) -> bool:
        return name in self.renderings and not self.renderings[name].is_over

    def renderings_of(self, job: str) -> list[Rendering]:
        """Those that are not over."""
        return [r for r in self.renderings.values() if r.job.id == job and not r.is_over]

    async def take_on(self, wish: Wish, *, stale: Held | None, revive: bool) -> Held | None:
        """Get the lease of a job and begin to render it. Only a door, or an order, revives one that has ended."""
        lead, is_new = self.leads.get(wish.job), False
        if lead is None:
            got = await self.io(
                take_lease, self.store, wish.job, self.owner, now=self.now, stale=stale, is_dead=self.is_dead
            )
            if isinstance(got, Held):
                return got
            lead, is_new = self.leads.setdefault(wish.job, Lead(got, self.io, self.now)), True
        try:
            await self._begin(lead, wish, is_new=is_new, revive=revive)
        except LeaseLost:
            self.lose(lead)
            held: Held | None = await self.io(look_at_lease, self.store, wish.job)
            return held or await self.take_on(wish, stale=None, revive=revive)
        except BaseException:
            if is_new and not self.renderings_of(wish.job):
                self.leads.pop(wish.job, None)
                with contextlib.suppress(OSError, StoreError, LeaseLost):
                    await self.io(lead.journal.release)
            raise
        return None

    async def _begin(self, lead: Lead, wish: Wish, *, is_new: bool, revive: bool) -> None:
        standing, requeues = lead.journal.standing, dict[str, bool]()  # order: whether everything is meant
        past: list[str] = []  # orders that a later requeue has made void
        if is_new and not standing.is_open:
            waiting = await self.io(new_orders, self.store, wish.job, standing.orders)
            requeues = {name: bool(told["everything"]) for name, told in waiting if told["order"] == "requeue"}
            past = [name for name, told in waiting if told["order"] != "requeue" and name < max(requeues, default="")]
            revive = revive or standing.state is None  # submitted to the store alone
            if not requeues and not revive:  # its end was written, and what comes after it was not
                return await self._leave(lead, wish)
        job, plan, missing = await self.io(self.plan, self.store, self.pools, wish)
        if any(requeues.values()):
            for task in plan.tasks.values():
                await lead.patiently(self.store.forget, task)
            missing = tasks_to_run(plan.tasks, plan.targets, lambda task: False)
        await lead.patiently(write_wish, self.store, wish)
        if is_new and standing.is_open:
            lead.move("take over", f"taken over by {self.owner.name}")
            if lead.state == "paused" and standing.paused_by_farm:  # it finds out itself whether there is room
                lead.move("resume", "the controller that had no room has ended")
            tried = [a for a in await self.io(read_attempts, self.store, wish.job) if a.fence >= standing.run_fence]
            self.work.know(tried, forgiven=standing.forgiven)
        if is_new and lead.state in (None, *ENDED) and (revive or requeues):
            lead.move("submit", f"submitted to {self.owner.name}")
        for name in (*past, *requeues):
            lead.note(order=name)
        await lead.written()
        if self.leads.get(wish.job) is not lead:
            raise LeaseLost(f"job {wish.job} has passed to another controller")
        missing = {key for key in missing if not self.dispatcher.is_finished(key)}  # done while we looked
        lead.is_begun = True
        self._start_rendering(
            lead,
            Rendering(wish, job, plan, missing),
            priority=wish.priority if standing.priority is None else standing.priority,
        )
        if lead.state == "canceled":  # it was caught while it was being canceled, and nobody asks for it anew
            self.spawn(self.finish(self.renderings[wish.name], "canceled"))
        elif not missing:
            self.spawn(self.finish(self.renderings[wish.name], "completed"))

    def _start_rendering(self, lead: Lead, rendering: Rendering, *, priority: int) -> None:
        name, missing, tasks = rendering.wish.name, rendering.to_run, rendering.plan.tasks
        is_alone = all(r.is_over for r in self.renderings.values())
        for old in [n for n, r in self.renderings.items() if r.is_over][:-MAX_ENDED]:
            ended = self.renderings.pop(old).job.id
            if ended in self.gates and not self.gates[ended].locked():
                del self.gates[ended]
        self.renderings[name] = rendering
        if lead.state in ("paused", "pausing", "canceled"):
            self.dispatcher.hold_job(name)
        self.dispatcher.add_job(name, tasks, missing, priority=priority)
        for key in missing:
            if not self.dispatcher.nodes[key].missing:
                self.work.queued_at.setdefault(key, self.now())
        if is_alone:  # another film's replicas hold that film's model
            wanted = {(t.stage, t.model, t.components) for t in map(tasks.__getitem__, missing) if t.model}
            for slot in self.fleet.slots.values():
                mine = [w for w in sorted(wanted) if w[0] in self.fleet.stages[slot.pool]]
                self.hands.warm(slot.handle, mine)
        self.work.dispatch()

    async def settle(self, names: Iterable[str]) -> None:
        """End the renderings of which nothing is left to run."""
        for rendering in [self.renderings[name] for name in names]:
            lead = self.leads.get(rendering.job.id)
            if lead is None or lead.state == "canceling":
                continue
            if rendering.done >= rendering.to_run:
                await self.finish(rendering, "completed")
            elif rendering.errors and self.dispatcher.is_settled(rendering.to_run):
                await self.finish(rendering, "failed")

    async def finish(self, rendering: Rendering, status: str) -> None:
        """Publish what there is, write the job's end, and tell the doors."""
        if rendering.is_over or rendering.is_ending:
            return
        rendering.is_ending = True
        try:
            if status == "completed":
                status = await self._publish(rendering)
                if not status:  # some of it has to be made again
                    rendering.is_ending = False
                    self.work.dispatch()
                    return
            self.drop(rendering)
            async with self.gates[rendering.job.id]:
                lead = self.leads.get(rendering.job.id)
                if lead is not None and self.renderings_of(lead.job) == [rendering]:
                    status = "canceled" if lead.state == "canceling" else status
                    if lead.state not in ENDED:
                        event = {"completed": "finish", "failed": "fail", "canceled": "quiet"}[status]
                        why = lead.reason if status == "canceled" else status
                        lead.move(event, "; ".join(rendering.errors)[:2000] or why)
                    rendering.reason = lead.reason
                    await self._leave(lead, rendering.wish)
                elif lead is not None:
                    with contextlib.suppress(OSError, StoreError):
                        await self.io(drop_wish, self.store, rendering.wish)
        except Exception as e:
            log.exception("the end of %s failed", rendering.wish.name)
            rendering.errors.append(f"the controller failed: {type(e).__name__}: {e}")
            status = "failed"
        if not rendering.is_over:  # it may have been lost meanwhile
            rendering.end(status)
            film = rendering.job.film
            self.on_end(status, film.num_delivered, film.num_delivered / film.output_fps)

    async def _publish(self, rendering: Rendering) -> str:
        """How the film ends; empty where parts of it were damaged in the store, and are to be made again."""
        tasks = rendering.plan.tasks
        try:
            rendering.film = await self.work.with_room([], publish_film, self.store, rendering.job, rendering.plan)
        except (OSError, StoreError) as e:
            lost = isinstance(e, DamagedError) and rendering.num_mended < MAX_MENDED
            if lost:
                rendering.num_mended += 1
                keys = await self.io(tasks_to_run, tasks, rendering.plan.targets, self.store.has)
                if not keys:  # another film that has it too has had it made
                    return await self._publish(rendering)
                rendering.run_again(keys)
                self.dispatcher.revive(rendering.wish.name, tasks, keys)
                return ""
            rendering.errors.append(f"the film could not be published: {e}")
            return "failed"
        return "completed"

    async def _leave(self, lead: Lead, wish: Wish) -> None:
        """After a job's end: write it down, its attempts into the ledger, and give the lease back.

        Orders that came too late are noted, so that they do not meet its next render; a requeue keeps its place.
        """
        try:
            await lead.written()
            await lead.patiently(ledger.compact, self.store, lead.job)
            late = await lead.patiently(new_orders, self.store, lead.job, lead.journal.standing.orders)
            for name, told in late:
                if told["order"] != "requeue":
                    lead.note(order=name)
            await lead.written()
            await lead.leave()
            if not any(told["order"] == "requeue" for _, told in late):
                await lead.patiently(drop_wish, self.store, wish)
        except (LeaseLost, OSError, StoreError):  # whoever drives the job next does it
            pass
        if self.leads.get(lead.job) is lead:
            del self.leads[lead.job]

    def drop(self, rendering: Rendering, *, keep: bool = False) -> None:
        """Forget a rendering's tasks; those that run for it alone stop, with their state kept where it is told."""
        orphans = self.dispatcher.drop_job(rendering.wish.name)
        for slot, key in self.fleet.holding(orphans):
            (self.hands.halt if keep else self.hands.cancel)(slot.handle, key)
        for key in rendering.to_run:
            if key not in self.dispatcher.nodes:  # else it runs, and may be asked for again
                self.work.forget(key)

    def lose(self, lead: Lead) -> None:
        """Another controller drives the job now: stop at once, write nothing more."""
        if self.leads.get(lead.job) is not lead:  # known already
            return
        del self.leads[lead.job]
        for rendering in self.renderings_of(lead.job):
            self.drop(rendering)
            rendering.end("lost")
        self.work.dispatch()

    async def write(self, lead: Lead) -> None:
        """Put a lead's moves into the journal."""
        try:
            await lead.written()
        except LeaseLost:
            self.lose(lead)

    # -- their states

    def pause(self, lead: Lead, reason: str, *, by_farm: bool, **fields: Any) -> None:
        lead.paused_by_farm = by_farm
        lead.move("pause", reason, by_farm=by_farm, **fields)
        for rendering in self.renderings_of(lead.job):
            running = self.dispatcher.hold_job(rendering.wish.name)
            for slot, key in self.fleet.holding(running):
                self.hands.halt(slot.handle, key)
            rendering.news.set()
        self.look_if_quiet(lead)

    def resume(self, lead: Lead, reason: str, **fields: Any) -> None:
        lead.paused_by_farm = False
        lead.move("resume", reason, **fields)
        for rendering in self.renderings_of(lead.job):
            self.dispatcher.release_job(rendering.wish.name)
        self.work.dispatch()

    def cancel(self, lead: Lead, reason: str, *, keep: bool, **fields: Any) -> None:
        lead.move("cancel", reason, **fields)
        for rendering in self.renderings_of(lead.job):
            self.drop(rendering, keep=keep)
            rendering.news.set()
        self.look_if_quiet(lead)

    async def fail_all(self, reason: str) -> None:
        """End all renderings: there is nothing to run them on."""
        for rendering in [r for r in self.renderings.values() if not r.is_over]:
            rendering.errors.append(reason)
            await self.finish(rendering, "failed")

    def look_if_quiet(self, lead: Lead) -> None:
        """Go on from `pausing` and `canceling` when nothing of the job runs any more."""
        ours = self.renderings_of(lead.job)
        if lead.state in ("pausing", "canceling", "canceled") and not any(r.in_flight for r in ours):
            if lead.state == "pausing":
                lead.move("quiet", lead.reason)
            else:
                for rendering in ours:
                    self.spawn(self.finish(rendering, "canceled"))
        self.spawn(self.write(lead))

    # -- a full store

    def note_full(self, reason: str) -> None:
        if self.work.full:
            return
        self.work.full = reason
        self.work.room.clear()
        for lead in [x for x in self.leads.values() if x.is_begun and x.state in ("queued", "active")]:
            self.pause(lead, f"{reason}; it goes on by itself when there is room", by_farm=True)
        self.spawn(self._wait_for_room())

    async def _wait_for_room(self) -> None:
        wait_s = ROOM_S
        while self.work.full and not self.fleet.closing:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_ROOM_S)
            try:
                await self.io(self.store.probe)
            except (StoreFull, OSError):
                continue
            self.work.full = ""
        self.work.room.set()
        for lead in [x for x in self.leads.values() if x.paused_by_farm]:
            if lead.state in ("paused", "pausing"):
                self.resume(lead, "there is room in the store again")
                self.spawn(self.write(lead))
        self.work.dispatch()

    # -- what runs beside

    def spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.background[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.background.pop(task, None)
        if task.cancelled() or (error := task.exception()) is None or not isinstance(error, Exception):
            return
        log.error("the controller failed", exc_info=error)
        for rendering in [r for r in self.renderings.values() if not r.is_over]:  # better an end than a film that hangs
            rendering.errors.append(f"the controller failed: {type(error).__name__}: {error}")
            self.spawn(self.finish(rendering, "failed"))
