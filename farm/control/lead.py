"""A job that this controller drives: its lease, its state, and the journal that both are written to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from farm.errors import StoreFull
from farm.states import JobState, job_after
from farm.store.journal import Journal

RETRY_S = 2.0  # between tries at a store that refuses
PATIENCE_S = 600.0  # with it

Io = Callable[..., Awaitable[Any]]  # runs what blocks


class Lead:
    """The state changes at once; its record follows, in order, when the store takes it."""

    def __init__(self, journal: Journal, io: Io, now: Callable[[], float]) -> None:
        self.journal, self.io, self.now = journal, io, now
        self.state: JobState | None = journal.standing.state
        self.reason = journal.standing.reason
        self.is_begun = False  # its tasks are known, so that orders can be carried out
        self.is_beating = False
        self.paused_by_farm = False  # because the store is full: it goes on by itself
        self.records: deque[tuple[str, str, dict[str, Any]]] = deque()
        self.writing = asyncio.Lock()

    @property
    def job(self) -> str:
        return self.journal.job

    def move(self, event: str, reason: str, **fields: Any) -> None:
        """Take the job to its next state. `written` puts it into the journal."""
        self.state = job_after(self.state, event)
        self.reason = reason
        self.records.append((event, reason, fields))

    def note(self, **fields: Any) -> None:
        """Note an order that changes no state."""
        self.records.append(("", "", fields))

    async def written(self) -> None:
        """Write what has not been written.

        Raises:
            LeaseLost: the job has passed to another.
            OSError: the store has refused for long.
        """
        async with self.writing:
            while self.records:
                event, reason, fields = self.records[0]
                if event:
                    await self.patiently(self.journal.move, event, reason, **fields)
                else:
                    await self.patiently(self.journal.append, "note", **fields)
                self.records.popleft()

    async def patiently(self, work: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Do what writes to the store, again while that has no room or is out of order."""
        end = self.now() + PATIENCE_S
        while True:
            try:
                return await self.io(work, *values, **named)
            except StoreFull:
                end = self.now() + PATIENCE_S  # room may be long in coming
            except OSError:
                if self.now() > end:
                    raise
            await asyncio.sleep(RETRY_S)

    async def beat(self) -> None:
        """Show that we live.

        Raises:
            LeaseLost: the job has passed to another.
        """
        async with self.writing:
            try:
                await self.io(self.journal.beat)
            except (OSError, StoreFull):  # the next one may come through
                return

    async def leave(self) -> None:
        """Give the lease back."""
        async with self.writing:
            await self.patiently(self.journal.release)
