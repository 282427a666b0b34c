"""Taking on what was submitted to this farm and nobody drives, as far as there is room."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from farm.control.jobs import Jobs
from farm.control.queue import Waiting, in_turn
from farm.errors import InputError
from farm.store.journal import Held, Watch, Wish, drop_wish, take_lease

log = logging.getLogger(__name__)


class Adoption:
    """Looks for such jobs in the store's queue; called again and again by the controller's clock."""

    def __init__(self, jobs: Jobs, *, farm: str, max_open: int, submit: Callable[..., Awaitable[Held | None]]) -> None:
        """Args:
        max_open: how many jobs are looked for at once; the others wait in the store and cost nothing.
        submit: `Control.submit`.
        """
        self.jobs, self.farm, self.max_open, self.submit = jobs, farm, max_open, submit
        self.waiting = Waiting(jobs.store, jobs.now)
        self.watches: dict[str, Watch] = {}  # of others' leases

    async def look(self) -> None:
        """Take on what was submitted to this farm and nobody drives, as far as there is room."""
        known = {name for name in self.jobs.renderings if self.jobs.is_active(name)}
        wishes = await self.jobs.io(self.waiting.look, known)
        self.watches = {job: watch for job, watch in self.watches.items() if any(w.job == job for w in wishes)}
        doors = {r.job.id for r in self.jobs.renderings.values() if r.followers}  # whoever waits there keeps count
        working = [x for x in self.jobs.leads.values() if x.state != "paused" and x.job not in doors]
        open_by = Counter(r.wish.by for r in self.jobs.renderings.values() if not r.is_over)
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
                await self.jobs.io(self._refuse, wish, str(e))
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
        if "job.json" in self.jobs.store.names(f"jobs/{wish.job}"):
            journal = take_lease(
                self.jobs.store, wish.job, self.jobs.owner, now=self.jobs.now, is_dead=self.jobs.is_dead
            )
            if isinstance(journal, Held):
                return
            if not journal.standing.is_open:
                journal.move("submit", f"submitted to {self.jobs.owner.name}")
            if journal.standing.state in ("queued", "active", "paused"):
                journal.move("fail", reason[:2000])
            journal.release()
        drop_wish(self.jobs.store, wish)
