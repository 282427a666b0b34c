"""The replicas of all pools: started as work asks for them, watched, and left in time when their nodes go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from farm.control.dispatch import Dispatcher
from farm.control.fleet import MAX_START_FAILURES, Fleet, Slot
from farm.errors import ReplicaLost
from farm.pools.pools import asked
from farm.task import Task


class Crew:
    """See the module."""

    def __init__(
        self, fleet: Fleet, dispatcher: Dispatcher, *, now: Callable[[], float], spawn: Callable[[Any], None],
        on_start: Callable[[], None], on_preview: Callable[[Task, bytes], Awaitable[None]],
        on_hopeless: Callable[[str], Awaitable[None]],
    ) -> None:  # fmt: skip
        """Args:
        on_start: a replica has started and can be given work.
        on_preview: a replica has sent a picture of what it is making.
        on_hopeless: a pool has no replica and cannot get one, for this reason.
        """
        self.fleet, self.dispatcher, self.hands, self.pools = fleet, dispatcher, fleet.hands, fleet.pools
        self.now, self.spawn = now, spawn
        self.on_start, self.on_preview, self.on_hopeless = on_start, on_preview, on_hopeless

    def scale(self) -> None:
        for pool, stages in self.fleet.stages.items():
            waiting = sum(self.dispatcher.num_ready[stage] for stage in stages)
            for slot in self.fleet.scale(pool, waiting=waiting, now=self.now()):
                self.spawn(self._welcome(slot))

    async def _welcome(self, slot: Slot) -> None:
        """Give a new replica work; where a pool has none at all and cannot get one, its films fail."""
        pool = self.pools[slot.pool]
        reason, failures = "", self.fleet.start_failures
        try:
            async with asyncio.timeout(pool.start_timeout_s):
                slot.node, slot.pid = await self.hands.place(slot.handle)
            slot.idle_since, failures[slot.pool] = self.now(), 0
        except TimeoutError:
            if self.fleet.replaced:  # perhaps the nodes that we avoid are the only ones
                self.fleet.replaced.clear()
                return self.fleet.drop(slot)
            failures[slot.pool] = MAX_START_FAILURES
            words = f"pool {slot.pool} asked for {asked(pool)} and got none in {pool.start_timeout_s:g} s"
            reason = f"{words}; {self.hands.cluster()}"
        except ReplicaLost as e:
            if slot.start_failures >= failures[slot.pool]:  # what was asked for together and lost together counts once
                failures[slot.pool] += 1
            reason = f"a replica of pool {slot.pool} could not start: {e}"
        if not reason:
            return self.on_start()
        self.fleet.drop(slot)
        if (
            self.fleet.closing
            or any(s.node for s in self.fleet.of(slot.pool))
            or failures[slot.pool] < MAX_START_FAILURES
        ):
            return None
        await self.on_hopeless(reason)

    async def look_at(self, slot: Slot) -> None:
        """Note what a replica is doing, and keep its preview where there is a new one."""
        try:
            async with asyncio.timeout(5.0):
                status = await self.hands.status(slot.handle)
        except TimeoutError:
            return
        except ReplicaLost:
            if slot.busy is None and not slot.num_saving:  # else its attempt finds out
                self.fleet.drop(slot)
            return
        slot.status, slot.other_nodes = status, status.other_nodes
        if status.is_leaving:
            slot.was_told = True
            self.fleet.dismiss(slot)
        node = self.dispatcher.nodes.get(status.task or "")
        if node is None or not status.preview:
            return
        await self.on_preview(node.task, status.preview)

    def leave_draining_nodes(self) -> None:
        """Have what runs on nodes that will be taken away go on elsewhere."""
        draining = set(self.hands.draining())
        leaving = [s for s in self.fleet.slots.values() if draining.intersection((s.node, *s.other_nodes))]
        for slot in [s for s in leaving if not s.is_leaving]:
            if slot.busy:
                self.hands.halt(slot.handle, slot.busy)
            self.fleet.dismiss(slot)
