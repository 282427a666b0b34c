"""Idle replicas predict slices of blended takes that others run; who is lent to whom, and until when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farm.control.dispatch import Dispatcher
from farm.control.fleet import Fleet, Slot
from farm.errors import ReplicaLost
from farm.task import Task

Sources = Callable[[Task], list[tuple[Task, Any]]]


class Loans:
    """See the module. A lent replica still counts as free: a task of its own ends the loan."""

    def __init__(self, fleet: Fleet, dispatcher: Dispatcher, sources: Sources, now: Callable[[], float]) -> None:
        self.fleet, self.dispatcher, self.sources, self.now = fleet, dispatcher, sources, now

    def lend(self) -> list[tuple[Slot, Slot, Task, list[tuple[Task, Any]]]]:
        """Choose idle replicas for takes that run: (helper, owner, task, its inputs); each has then to be prepared."""
        slots, chosen = list(self.fleet.slots.values()), []
        for owner in slots:
            node = self.dispatcher.nodes.get(owner.busy or "")
            num_slices = len(getattr(node.task.request, "slices", ())) if node is not None else 0
            if node is None or num_slices < 2 or not node.jobs:
                continue
            idle = [s for s in slots if s.pool == owner.pool and s.is_free and not s.lent_to]
            lent = sum(s.lent_to == node.task.key for s in slots)
            for slot in idle[: num_slices - 1 - lent]:
                slot.lent_to, slot.is_prepared = node.task.key, False
                chosen.append((slot, owner, node.task, self.sources(node.task)))
        return chosen

    async def prepare(self, slot: Slot, owner: Slot, task: Task, inputs: list[tuple[Task, Any]]) -> None:
        try:
            await self.fleet.hands.prepare(slot.handle, task, inputs)
        except ReplicaLost:  # it is not lent then; a dead one is found out by the next look at it
            if slot.lent_to == task.key:
                slot.lent_to = ""
            return
        if slot.lent_to == task.key:
            slot.is_prepared = True
            self._tell(owner, task.key)

    def take_back(self, slot: Slot) -> None:
        """Before a replica gets a task of its own, or when the take that it was lent to has ended."""
        key, slot.lent_to = slot.lent_to, ""
        if key:
            slot.idle_since = self.now()
        for owner in self.fleet.slots.values():
            if key and owner.busy == key:
                self._tell(owner, key)

    def take_all_back(self, key: str) -> None:
        for slot in [s for s in self.fleet.slots.values() if s.lent_to == key]:
            self.take_back(slot)

    def _tell(self, owner: Slot, key: str) -> None:
        ours = [s for s in self.fleet.slots.values() if s.lent_to == key and s.is_prepared]
        self.fleet.hands.lend(owner.handle, key, {s.name: s.handle for s in ours})
