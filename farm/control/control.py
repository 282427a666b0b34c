"""The farm's control loop: accepts jobs, schedules their tasks and drives each to a final state.

All state is changed on one event loop; what blocks (planning, the store) goes through `io`; replicas are reached
through `hands`. So the same code runs in Ray's controller actor and, in virtual time, in farm/worlds. It can die
between any two of its writes: another one rebuilds everything from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from farm.control.adoption import Adoption
from farm.control.fleet import Hands
from farm.control.jobs import Jobs, Planned, plan_wish
from farm.control.lead import Io, Lead
from farm.control.orders import follow_orders
from farm.control.queue import MAX_OPEN
from farm.errors import LeaseLost, StoreError
from farm.pools.pools import Pool
from farm.states import ENDED
from farm.store.journal import BEAT_S, Held, Owner, Wish, drop_wish
from farm.store.store import Store

log = logging.getLogger(__name__)
TICK_S = 1.0
ADOPT_S = 2.0  # between looks for work that nobody does
IDLE_TICKS = 5  # how often one looks at replicas that do nothing


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
        self.jobs = Jobs(store, pools, hands, owner=owner, io=io, now=now, package=package, is_dead=is_dead, plan=plan)
        self.store, self.pools, self.hands, self.io, self.now = store, self.jobs.pools, hands, io, now
        self.work, self.dispatcher, self.fleet = self.jobs.work, self.jobs.dispatcher, self.jobs.fleet
        self.adopts, self.adoption = adopts, Adoption(self.jobs, farm=farm, max_open=max_open, submit=self.submit)
        self.ticks = 0
        self.is_open = False

    # -- doors

    async def open(self) -> list[str]:
        """Start the pools' least replicas and the clock. Returns the names of the pools."""
        if not self.is_open:
            self.is_open = True
            self.work.crew.scale()
            self.jobs.spawn(self._every(TICK_S, self._tick))
            self.jobs.spawn(self._every(BEAT_S, self._beat))
            if self.adopts:
                self.jobs.spawn(self._every(ADOPT_S, self.adoption.look))
        return list(self.pools)

    async def submit(self, wish: Wish, *, stale: Held | None = None, door: str = "") -> Held | None:
        """Take on a job that lies in the store; one that is being rendered already is followed.

        Args:
            stale: another's lease that may be taken over.
            door: who waits for it; only a door revives a job that has ended.
        Returns:
            The lease of another controller where that one drives the job.
        """
        async with self.jobs.gates[wish.job]:
            if not self.jobs.is_active(wish.name):
                held = await self.jobs.take_on(wish, stale=stale, revive=bool(door))
                if held is not None:
                    return held
            if door:
                self.jobs.renderings[wish.name].followers.add(door)
        return None

    async def view(self, name: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a rendering stands: counts, what runs now, why it ended. Waits up to `wait_s` for news of it."""
        rendering = self.jobs.renderings[name]
        if wait_s and not rendering.is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await rendering.news.wait()
        rendering.news.clear()
        lead = self.jobs.leads.get(rendering.job.id)
        state, reason = (lead.state or "queued", lead.reason) if lead else ("queued", rendering.reason)
        if state in ENDED:  # it is over when that has been written down
            state = "canceling" if state == "canceled" else "active"
        return rendering.view(self.fleet.slots.values(), state=state, reason=reason, now=self.now())

    async def cancel(self, name: str, door: str) -> bool:
        """One door leaves. With the last one what runs for it alone ends between two steps; what exists stays.

        Returns whether the rendering is being canceled: not where others follow it or it is over.
        """
        rendering = self.jobs.renderings[name]
        rendering.followers.discard(door)
        if rendering.is_over or rendering.followers:
            return False
        lead = self.jobs.leads.get(rendering.job.id)
        if lead is not None and self.jobs.renderings_of(lead.job) == [rendering]:
            if lead.state not in (*ENDED, "canceling"):
                self.jobs.cancel(lead, "its last door left", keep=True)
        else:
            self.jobs.drop(rendering, keep=True)
            self.jobs.spawn(self.io(drop_wish, self.store, rendering.wish))
            rendering.end("canceled")
        return True

    async def is_quiet(self, name: str) -> bool:
        """Whether a rendering is over and no attempt of it is running or still to be written down."""
        return self.jobs.renderings[name].is_over and not self.jobs.renderings[name].in_flight

    async def close(self) -> None:
        """Stop all replicas and leave all jobs as they are."""
        self.fleet.closing = True
        for slot in list(self.fleet.slots.values()):
            self.fleet.drop(slot)

    # -- the clock

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again. What goes wrong once is told, and does not end it."""
        while not self.fleet.closing:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:  # whatever it is: a controller without a clock would hold its leases and do nothing
                log.exception("%s failed", work.__qualname__)

    async def _tick(self) -> None:
        """Look at replicas, nodes and orders."""
        self.ticks += 1
        is_round = self.ticks % IDLE_TICKS == 0
        seen = [s for s in self.fleet.slots.values() if s.node and (s.busy or is_round)]
        await asyncio.gather(*(self.work.crew.look_at(s) for s in seen))
        self.work.crew.leave_draining_nodes()
        if is_round and any(pool.ranks > 1 for pool in self.pools.values()):
            self.hands.reap()
        await asyncio.gather(*(self._look_after(lead) for lead in list(self.jobs.leads.values()) if lead.is_begun))
        for rendering in self.jobs.renderings.values():
            rendering.news.set()
        self.work.dispatch()

    async def _beat(self) -> None:
        """Show that we live; each job by itself, so that one that waits for the store holds up no other."""
        for lead in [x for x in self.jobs.leads.values() if not x.is_beating]:
            lead.is_beating = True
            self.jobs.spawn(self._beat_for(lead))

    async def _beat_for(self, lead: Lead) -> None:
        try:
            await lead.beat()
        except LeaseLost:
            self.jobs.lose(lead)
        finally:
            lead.is_beating = False

    async def _look_after(self, lead: Lead) -> None:
        try:
            await follow_orders(self.jobs, lead)
        except LeaseLost:
            self.jobs.lose(lead)
        except (OSError, StoreError):  # the next look may come through
            return
