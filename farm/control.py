"""The mind of the farm: takes on jobs, hands out their tasks, and brings every one of them to an end.

All state is changed on one event loop; what blocks (planning, the store) goes through `io`; replicas are reached
through `hands`. So the same code runs in Ray's controller actor and, in virtual time, in simulate.py. It can die
between any two of its writes: another one rebuilds everything from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from . import ledger
from .admission import MAX_OPEN, Waiting, in_turn
from .attempts import Attempts
from .errors import InputError, LeaseLost, StoreError, StoreFull
from .fleet import Hands
from .jobs import Job, publish_film, read_job
from .journal import (
    BEAT_S,
    Held,
    Owner,
    Watch,
    Wish,
    drop_wish,
    look_at_lease,
    new_orders,
    read_attempts,
    take_lease,
    write_wish,
)  # fmt: skip
from .lead import Io, Lead
from .plan import Plan, make_plan, tasks_to_run
from .pools import Pool, numerics
from .rendering import Rendering
from .states import ENDED
from .store import Store

log = logging.getLogger(__name__)
TICK_S = 1.0
ADOPT_S = 2.0  # between looks for work that nobody does
IDLE_TICKS = 5  # how often one looks at replicas that do nothing
MAX_ENDED = 100  # renderings that can still be asked for
ROOM_S, MAX_ROOM_S = 5.0, 60.0  # between looks at a full store
Planned = tuple[Job, Plan, set[str]]


def plan_wish(store: Store, pools: Mapping[str, Pool], wish: Wish) -> Planned:
    """A job that lies in the store, its plan, and what of it is missing."""
    job = read_job(store, wish.job)
    plan = make_plan(job.film, job.models, numerics(pools), container=wish.container, stills=wish.stills)
    return job, plan, tasks_to_run(plan.tasks, plan.targets, store.has)


class Control:
    """See the module. Methods are called by the doors; a rendering is named by its wish."""

    def __init__(
        self, store: Store, pools: Mapping[str, Pool], hands: Hands, *, owner: Owner, farm: str, io: Io,
        now: Callable[[], float], package: str = "pipelines", adopts: bool = False,
        is_dead: Callable[[Owner], bool] = lambda owner: False, plan: Callable[..., Planned] = plan_wish,
        max_open: int = MAX_OPEN,
    ) -> None:  # fmt: skip
        """Nothing is started yet; see `open`.

        Args:
            farm: the name of all controllers that do the same work: jobs of one that died are taken on by the next.
            adopts: look for such jobs, and for orders that revive ended ones; else only what doors submit is done.
            is_dead: whether a controller is known to have ended.
            max_open: how many jobs it looks for itself at once; the others wait in the store and cost nothing.
        """
        self.max_open, self.waiting = max_open, Waiting(store, now)
        self.store, self.pools, self.hands, self.owner, self.farm = store, dict(pools), hands, owner, farm
        self.io, self.now, self.adopts, self.is_dead, self.plan = io, now, adopts, is_dead, plan
        self.work = Attempts(store, self.pools, hands, self, owner=owner, io=io, now=now, package=package)
        self.dispatcher, self.fleet = self.work.dispatcher, self.work.fleet
        self.leads: dict[str, Lead] = {}
        self.renderings: dict[str, Rendering] = {}
        self.watches: dict[str, Watch] = {}  # of others' leases
        self.gates: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by job: comes and goes one at a time
        self.background: dict[asyncio.Task[Any], None] = {}  # in order, so that a simulated world lives again as it did
        self.on_end: Callable[[str, int, float], None] = lambda outcome, frames, seconds: None  # of a film
        self.ticks = 0
        self.is_open = False

    # -- doors

    async def open(self) -> list[str]:
        """Start the pools' least replicas and the clock. Returns the names of the pools."""
        if not self.is_open:
            self.is_open = True
            self.work.scale()
            self.spawn(self._every(TICK_S, self._tick))
            self.spawn(self._every(BEAT_S, self._beat))
            if self.adopts:
                self.spawn(self._every(ADOPT_S, self._adopt))
        return list(self.pools)

    async def submit(self, wish: Wish, *, stale: Held | None = None, door: str = "") -> Held | None:
        """Take on a job that lies in the store; one that is being rendered already is followed.

        Args:
            stale: another's lease that may be taken over.
            door: who waits for it; only a door revives a job that has ended.
        Returns:
            The lease of another controller where that one drives the job.
        """
        async with self.gates[wish.job]:
            if not self._is_active(wish.name):
                held = await self._take_on(wish, stale=stale, revive=bool(door))
                if held is not None:
                    return held
            if door:
                self.renderings[wish.name].followers.add(door)
        return None

    async def view(self, name: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a rendering stands: counts, what runs now, why it ended. Waits up to `wait_s` for news of it."""
        rendering = self.renderings[name]
        if wait_s and not rendering.is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await rendering.news.wait()
        rendering.news.clear()
        lead = self.leads.get(rendering.job.id)
        state, reason = (lead.state or "queued", lead.reason) if lead else ("queued", rendering.reason)
        if state in ENDED:  # it is over when that has been written down
            state = "canceling" if state == "canceled" else "active"
        return rendering.view(self.fleet.slots.values(), state=state, reason=reason, now=self.now())

    async def cancel(self, name: str, door: str) -> bool:
        """One door leaves. With the last one what runs for it alone ends between two steps; what exists stays.

        Returns whether the rendering is being canceled: not where others follow it or it is over.
        """
        rendering = self.renderings[name]
        rendering.followers.discard(door)
        if rendering.is_over or rendering.followers:
            return False
        lead = self.leads.get(rendering.job.id)
        if lead is not None and self._renderings_of(lead.job) == [rendering]:
            if lead.state not in (*ENDED, "canceling"):
                self._cancel_job(lead, "its last door left", keep=True)
        else:
            self._drop(rendering, keep=True)
            self.spawn(self.io(drop_wish, self.store, rendering.wish))
            rendering.end("canceled")
        return True

    async def is_quiet(self, name: str) -> bool:
        """Whether a rendering is over and no attempt of it is running or still to be written down."""
        return self.renderings[name].is_over and not self.renderings[name].in_flight

    async def close(self) -> None:
        """Stop all replicas and leave all jobs as they are."""
        self.work.closing = True
        for slot in list(self.fleet.slots.values()):
            self.fleet.drop(slot)

    # -- jobs

    def _is_active(self, name: str) -> bool:
        return name in self.renderings and not self.renderings[name].is_over

    def _renderings_of(self, job: str) -> list[Rendering]:
        """Those that are not over."""
        return [r for r in self.renderings.values() if r.job.id == job and not r.is_over]

    async def _take_on(self, wish: Wish, *, stale: Held | None, revive: bool) -> Held | None:
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
            self._lose(lead)
            held: Held | None = await self.io(look_at_lease, self.store, wish.job)
            return held or await self._take_on(wish, stale=None, revive=revive)
        except BaseException:
            if is_new and not self._renderings_of(wish.job):
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
            self.spawn(self._finish(self.renderings[wish.name], "canceled"))
        elif not missing:
            self.spawn(self._finish(self.renderings[wish.name], "completed"))

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
                await self._finish(rendering, "completed")
            elif rendering.errors and self.dispatcher.is_settled(rendering.to_run):
                await self._finish(rendering, "failed")

    async def _finish(self, rendering: Rendering, status: str) -> None:
        """Publish what there is, write the job's end, and tell the doors."""
        if rendering.is_over or rendering.is_ending:
            return
        rendering.is_ending = True
        try:
            if status == "completed":
                status = await self._publish(rendering)
            self._drop(rendering)
            async with self.gates[rendering.job.id]:
                lead = self.leads.get(rendering.job.id)
                if lead is not None and self._renderings_of(lead.job) == [rendering]:
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
        try:
            rendering.film = await self.work.with_room([], publish_film, self.store, rendering.job, rendering.plan)
        except (OSError, StoreError) as e:
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

    def _drop(self, rendering: Rendering, *, keep: bool = False) -> None:
        """Forget a rendering's tasks; those that run for it alone stop, with their state kept where it is told."""
        orphans = self.dispatcher.drop_job(rendering.wish.name)
        for slot, key in self.fleet.holding(orphans):
            (self.hands.halt if keep else self.hands.cancel)(slot.handle, key)
        for key in rendering.to_run:
            if key not in self.dispatcher.nodes:  # else it runs, and may be asked for again
                self.work.forget(key)

    def _lose(self, lead: Lead) -> None:
        """Another controller drives the job now: stop at once, write nothing more."""
        if self.leads.get(lead.job) is not lead:  # known already
            return
        del self.leads[lead.job]
        for rendering in self._renderings_of(lead.job):
            self._drop(rendering)
            rendering.end("lost")
        self.work.dispatch()

    async def write(self, lead: Lead) -> None:
        """Put a lead's moves into the journal."""
        try:
            await lead.written()
        except LeaseLost:
            self._lose(lead)

    # -- orders

    def _pause_job(self, lead: Lead, reason: str, *, by_farm: bool, **fields: Any) -> None:
        lead.paused_by_farm = by_farm
        lead.move("pause", reason, by_farm=by_farm, **fields)
        for rendering in self._renderings_of(lead.job):
            running = self.dispatcher.hold_job(rendering.wish.name)
            for slot, key in self.fleet.holding(running):
                self.hands.halt(slot.handle, key)
            rendering.news.set()
        self.look_if_quiet(lead)

    def _resume_job(self, lead: Lead, reason: str, **fields: Any) -> None:
        lead.paused_by_farm = False
        lead.move("resume", reason, **fields)
        for rendering in self._renderings_of(lead.job):
            self.dispatcher.release_job(rendering.wish.name)
        self.work.dispatch()

    def _cancel_job(self, lead: Lead, reason: str, *, keep: bool, **fields: Any) -> None:
        lead.move("cancel", reason, **fields)
        for rendering in self._renderings_of(lead.job):
            self._drop(rendering, keep=keep)
            rendering.news.set()
        self.look_if_quiet(lead)

    async def fail_all(self, reason: str) -> None:
        """End all renderings: there is nothing to run them on."""
        for rendering in [r for r in self.renderings.values() if not r.is_over]:
            rendering.errors.append(reason)
            await self._finish(rendering, "failed")

    def look_if_quiet(self, lead: Lead) -> None:
        """Go on from `pausing` and `canceling` when nothing of the job runs any more."""
        ours = self._renderings_of(lead.job)
        if lead.state in ("pausing", "canceling", "canceled") and not any(r.in_flight for r in ours):
            if lead.state == "pausing":
                lead.move("quiet", lead.reason)
            else:
                for rendering in ours:
                    self.spawn(self._finish(rendering, "canceled"))
        self.spawn(self.write(lead))

    async def _follow_orders(self, lead: Lead) -> None:
        """Carry out what was asked of a job since the last look."""
        known = lead.journal.standing.orders | {r[2].get("order", "") for r in lead.records}
        for name, told in await self.io(new_orders, self.store, lead.job, known):
            if lead.job not in self.leads or lead.state in ENDED:
                return
            kind, by = told["order"], f"by order of {told['by']}"
            if kind == "pause" and lead.state in ("queued", "active"):
                self._pause_job(lead, f"paused {by}", by_farm=False, order=name)
            elif kind == "pause" and lead.paused_by_farm:
                lead.paused_by_farm = False
                lead.note(order=name, by_farm=False)
            elif kind == "resume" and lead.state in ("paused", "pausing"):
                self._resume_job(lead, f"resumed {by}", order=name)
            elif kind == "cancel" and lead.state != "canceling":
                self._cancel_job(lead, f"canceled {by}", keep=False, order=name)
            elif kind == "requeue" and lead.state != "canceling":
                forgiven = await self._requeue(lead, everything=told["everything"])
                lead.note(order=name, forgiven=forgiven)
            elif kind == "priority":
                for rendering in self._renderings_of(lead.job):
                    self.dispatcher.set_priority(rendering.wish.name, told["priority"])
                lead.note(order=name, priority=told["priority"])
            else:  # it asks for what is so already
                lead.note(order=name)
        await self.write(lead)

    async def _requeue(self, lead: Lead, *, everything: bool) -> list[str]:
        """Give failed tasks another chance; run again what was done, if that is asked. Returns forgiven attempts."""
        forgiven = []
        for rendering in self._renderings_of(lead.job):
            rendering.errors.clear()
            for key in self.dispatcher.requeue_failed(rendering.wish.name):
                forgiven += [a.attempt_id for a in self.work.tries.pop(key, [])]
            if everything:
                done = {k for k in rendering.plan.tasks if not self.dispatcher.is_pending(k)}
                for key in sorted(done):
                    await lead.patiently(self.store.forget, rendering.plan.tasks[key])
                rendering.run_again(done)
                self.dispatcher.revive(rendering.wish.name, rendering.plan.tasks, done)
        self.work.dispatch()
        return forgiven

    # -- a full store

    def note_full(self, reason: str) -> None:
        if self.work.full:
            return
        self.work.full = reason
        self.work.room.clear()
        for lead in [x for x in self.leads.values() if x.is_begun and x.state in ("queued", "active")]:
            self._pause_job(lead, f"{reason}; it goes on by itself when there is room", by_farm=True)
        self.spawn(self._wait_for_room())

    async def _wait_for_room(self) -> None:
        wait_s = ROOM_S
        while self.work.full and not self.work.closing:
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
                self._resume_job(lead, "there is room in the store again")
                self.spawn(self.write(lead))
        self.work.dispatch()

    # -- the clock

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again. What goes wrong once is told, and does not end it."""
        while not self.work.closing:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:  # whatever it is: a controller without a clock would hold its leases and do nothing
                log.exception("%s failed", work.__name__)

    async def _tick(self) -> None:
        """Look at replicas, nodes and orders."""
        self.ticks += 1
        is_round = self.ticks % IDLE_TICKS == 0
        seen = [s for s in self.fleet.slots.values() if s.node and (s.busy or is_round)]
        await asyncio.gather(*(self.work.look_at(s) for s in seen))
        self.work.leave_draining_nodes()
        if is_round and any(pool.ranks > 1 for pool in self.pools.values()):
            self.hands.reap()
        await asyncio.gather(*(self._look_after(lead) for lead in list(self.leads.values()) if lead.is_begun))
        for rendering in self.renderings.values():
            rendering.news.set()
        self.work.dispatch()

    async def _beat(self) -> None:
        """Show that we live; each job by itself, so that one that waits for the store holds up no other."""
        for lead in [x for x in self.leads.values() if not x.is_beating]:
            lead.is_beating = True
            self.spawn(self._beat_for(lead))

    async def _beat_for(self, lead: Lead) -> None:
        try:
            await lead.beat()
        except LeaseLost:
            self._lose(lead)
        finally:
            lead.is_beating = False

    async def _look_after(self, lead: Lead) -> None:
        try:
            await self._follow_orders(lead)
        except LeaseLost:
            self._lose(lead)
        except (OSError, StoreError):  # the next look may come through
            return

    async def _adopt(self) -> None:
        """Take on what was submitted to this farm and nobody drives, as far as there is room."""
        known = {name for name in self.renderings if self._is_active(name)}
        wishes = await self.io(self.waiting.look, known)
        self.watches = {job: watch for job, watch in self.watches.items() if any(w.job == job for w in wishes)}
        doors = {r.job.id for r in self.renderings.values() if r.followers}  # whoever waits there keeps count
        working = [x for x in self.leads.values() if x.state != "paused" and x.job not in doors]
        open_by = Counter(r.wish.by for r in self.renderings.values() if not r.is_over)
        room = self.max_open - len(working)
        ours = in_turn([w for w in wishes if w.farm in ("", self.farm)], open_by)
        for wish in ours:
            if room <= 0:
                break
            clock = asyncio.get_running_loop().time  # not the time of day, which may be set
            watch = self.watches.get(wish.job)
            stale = watch.held if watch and watch.look(watch.held, clock()) else None
            try:
                held = await self.submit(wish, stale=stale)
            except InputError as e:  # its job is gone, or was written by another version
                log.warning("%s is not rendered: %s", wish.name, e)
                await self.io(self._refuse, wish, str(e))
                continue
            except (LookupError, TypeError, ValueError):  # of one job's records: the others must not wait for it
                log.exception("%s is not rendered", wish.name)
                continue
            if held is None:
                room -= 1
            else:
                self.watches.setdefault(wish.job, Watch(held, clock())).look(held, clock())

    def _refuse(self, wish: Wish, reason: str) -> None:
        """Have a job that cannot be begun end, where it is there at all, and take it from the queue."""
        if "job.json" in self.store.names(f"jobs/{wish.job}"):
            journal = take_lease(self.store, wish.job, self.owner, now=self.now, is_dead=self.is_dead)
            if isinstance(journal, Held):
                return
            if not journal.standing.is_open:
                journal.move("submit", f"submitted to {self.owner.name}")
            if journal.standing.state in ("queued", "active", "paused"):
                journal.move("fail", reason[:2000])
            journal.release()
        drop_wish(self.store, wish)

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
            self.spawn(self._finish(rendering, "failed"))
