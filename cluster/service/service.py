"""The farm as a service sees it: films are submitted, read and changed here, whatever the door speaks.

Submitting writes to the store and answers; the controller finds it there. So a server can die at any moment, there may
be several, and none of them holds anything that another one lacks. Methods block, on the store; `live` alone awaits.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.service.errors import Forbidden, NotFound, TooMuch
from cluster.service.prepare import Prepared, prepare
from cluster.service.webhooks import check_webhook, keep_webhook
from farm.clock import steady_time
from farm.errors import Problem, StoreError
from farm.keys import hash_json
from farm.models.checkpoint import Checkpoint
from farm.plan.plan import Plan, make_plan, tasks_to_run
from farm.pools.pools import Pool, numerics
from farm.service.access import Caller, Keyring, note_change
from farm.service.limits import Bucket, Limits, Usage, over_quota
from farm.service.submission import (
    AlreadyUsed,
    Memory,
    Submission,
    Where,
    delete,
    give_order,
    give_room_back,
    is_deleted,
    keep,
    list_jobs,
    once,
    read_submission,
    take_room,
    where,
)
from farm.states import ENDED
from farm.store.history import write_plan
from farm.store.jobs import read_job, read_warnings
from farm.store.journal import read_attempts
from farm.store.ledger import estimate_of, read_ledger
from farm.store.store import Store, artifact_path

log = logging.getLogger(__name__)
LEDGER_FRESH_S = 60.0
SWEEP_S = 60.0
ESTIMATE_DAYS = 7  # of the ledger
ENDED_FRESH_S = 5.0  # a film that has ended may be revived by another server
MANY = 10_000  # films whose warnings are remembered
View = Callable[[str], Awaitable[dict[str, Any] | None]]  # the controller's view of a rendering, by its wish's name


@dataclass
class Service:
    """One server's view of one farm."""

    store: Store
    pools: dict[str, Pool]
    models: dict[str, Checkpoint]  # by the name that callers use
    limits: Limits
    view: View
    webhook_secret: str = ""  # empty: this server sends none
    replicas: int = 1  # servers that requests are spread among
    is_open: bool = False  # bound to loopback: without any key everybody is the operator
    now: Callable[[], float] = time.time  # of what is written down
    clock: Callable[[], float] = steady_time  # of what is compared
    keyring: Keyring = field(init=False)

    def __post_init__(self) -> None:
        self.keyring = Keyring(self.store, self.clock)
        self.memory = Memory(self.store)
        self.buckets: dict[str, Bucket] = {}
        self.gpu_hours: tuple[float, dict[str, float]] = (float("-inf"), {})
        self.streams: Counter[str] = Counter()  # that are open, by key
        self.swept: dict[str, float] = {}  # when a key's quota was last looked over
        self.ended: dict[str, tuple[float, Where]] = {}
        self.warned: dict[str, tuple[float | None, tuple[Problem, ...]]] = {}
        self.plan_of = lru_cache(maxsize=64)(self._plan_of)

    # -- who asks

    def pace(self, caller: Caller) -> None:
        """Raises:
        TooMuch: this key asks too often.
        """
        now = self.clock()
        bucket = self.buckets.setdefault(caller.name, Bucket(self.limits.requests_per_s / self.replicas, now))
        if wait_s := bucket.take(now):
            raise TooMuch(f"a key may ask {self.limits.requests_per_s:g} times a second", wait_s)

    @contextmanager
    def streaming(self, caller: Caller) -> Iterator[None]:
        """Count an event stream while it is open."""
        self.streams[caller.name] += 1
        try:
            yield
        finally:
            self.streams[caller.name] -= 1

    def check_streams(self, caller: Caller) -> None:
        """Raises:
        TooMuch: this key has many event streams open.
        """
        if self.streams[caller.name] >= self.limits.max_streams:
            raise TooMuch(f"a key may have {self.limits.max_streams} event streams open", 10.0)

    def find(self, job: str, caller: Caller) -> Submission:
        """Raises:
        NotFound: there is no such film, or it is another key's.
        """
        found = self.memory.submission(job)
        if found is None or not caller.may_see(found.by):
            raise NotFound(f"there is no film {job!r}")
        return found

    def find_to_change(self, job: str, caller: Caller) -> Submission:
        """Raises:
        NotFound, Forbidden.
        """
        found = self.find(job, caller)
        if not caller.may_change(found.by):
            raise Forbidden(f"the role {caller.role} may not change films")
        return found

    # -- submitting

    def prepare(self, raw: bytes, uploads: Mapping[str, Path]) -> Prepared:
        """See prepare.py."""
        return prepare(raw, uploads, models=self.models, pools=self.pools, limits=self.limits)

    def submit(
        self, prepared: Prepared, caller: Caller, *, kind: str, priority: int = 50, key: str = "", webhook: str = "",
        request: Mapping[str, Any] | None = None,
    ) -> tuple[Submission, bool]:  # fmt: skip
        """Queue a film; when this returns it is durable.

        Args:
            key: the caller's Idempotency-Key: the same request with the same one is the same film.
            webhook: an address that is told when the film has ended.
        Returns:
            The submission, and whether it is new.
        Raises:
            Forbidden: a viewer asks. TooMuch: a quota is spent. AlreadyUsed: of the Idempotency-Key.
        """
        if not caller.may_submit:
            raise Forbidden(f"the role {caller.role} may not submit films")
        if webhook:
            check_webhook(webhook, self.webhook_secret)
        content, told = prepared.job, dict(request or {})
        digest = hash_json({"job": content.id, "kind": kind, "priority": priority, "webhook": webhook, "request": told})
        name = hash_json({"job": content.id, "by": caller.name, "once": key or secrets.token_hex(16)})[:16]
        if key:
            name = once(self.store, caller.name, key, digest=digest, job=name)
            if is_deleted(self.store, name):
                raise AlreadyUsed(f"Idempotency-Key {key!r} must be a new one: the film that had it has been deleted")
            if (found := read_submission(self.store, name)) and where(self.store, found).state in ENDED:
                return found, False
        film, at = content.film, self.now()
        width, height = film.delivered_px
        submission = Submission(
            job=name, kind=kind, by=caller.name, at=at, title=film.title, model=prepared.model, width=width,
            height=height, fps=film.output_fps, frames=film.num_delivered,
            shots=tuple((s.id, s.num_frames, len(s.chunks)) for s in film.shots), container=prepared.container,
            priority=priority, request=told, warnings=prepared.warnings,
        )  # fmt: skip
        with self._room_for(submission, caller):
            job = replace(content, id=name)
            write_plan(self.store, job, prepared.plan, variant=prepared.container)
            kept = keep(self.store, submission, job, prepared.files)
            if webhook:
                keep_webhook(self.store, name, webhook)
        self._note(caller, "submit", name, at)
        return kept, kept.at == at

    @contextmanager
    def _room_for(self, submission: Submission, caller: Caller) -> Iterator[None]:
        """Take a film from its key's quota, which all servers share; it is given back where the context ends in an
        error.

        Raises:
            TooMuch: the quota is spent.
        """
        wish, hours = submission.wish, self._gpu_hours_of(caller)

        def take() -> tuple[bool, str]:
            is_new, films, seconds = take_room(self.store, wish)
            usage = Usage(seconds - submission.seconds, films - 1, hours)
            return is_new, over_quota(usage, submission.seconds, self.limits)

        is_new, told = take()
        if is_new and told and self.clock() - self.swept.get(caller.name, float("-inf")) > SWEEP_S:
            self.swept[caller.name] = self.clock()
            give_room_back(self.store, caller.name)
            _, told = take()
        try:
            if is_new and told:
                raise TooMuch(told, 10.0)
            yield
        except BaseException:
            if is_new:
                self.store.remove(wish.count_path)
            raise

    def _gpu_hours_of(self, caller: Caller) -> float:
        """Of today, by the ledger; of films that have ended."""
        if self.limits.gpu_hours_per_day is None:
            return 0.0
        if self.clock() - self.gpu_hours[0] > LEDGER_FRESH_S:
            told: dict[str, float] = {}
            for row in read_ledger(self.store, since=time.strftime("%Y-%m-%d", time.gmtime(self.now()))):
                owners = {s.by for job in row["jobs"] if (s := read_submission(self.store, str(job), deleted=True))}
                for owner in owners:
                    told[owner] = told.get(owner, 0.0) + row["gpu_s"] / 3600 / len(owners)
            self.gpu_hours = (self.clock(), told)
        return self.gpu_hours[1].get(caller.name, 0.0)

    # -- reading

    def where(self, submission: Submission) -> Where:
        """Where a film stands by the store; what has ended is remembered for a while."""
        known = self.ended.get(submission.job)
        if known and self.clock() - known[0] < ENDED_FRESH_S:
            return known[1]
        told = self.memory.where(submission)
        if told.state in ENDED:
            if len(self.ended) > 10_000:
                self.ended.clear()
            self.ended[submission.job] = (self.clock(), told)
        return told

    def page(self, caller: Caller, *, kind: str, after: str, limit: int, newest_first: bool, state: str = "",
             by: str = "") -> tuple[list[Submission], bool]:  # fmt: skip
        """Films that a caller may see, and whether there are more."""
        owners = [caller.name] if caller.role == "submitter" else ([by] if by else None)
        if by and not caller.may_see(by):
            return [], False
        found: list[Submission] = []
        for job in list_jobs(self.store, owners, after=after, newest_first=newest_first):
            one = self.memory.submission(job)
            if one is None or (kind and one.kind != kind) or (state and self.where(one).state != state):
                continue
            if len(found) == limit:
                return found, True
            found.append(one)
        return found, False

    async def live(self, submission: Submission, told: Where) -> dict[str, Any] | None:
        """The controller's view of a film that it renders; None where it does not, or does not answer. It is not asked
        about one that by the store nobody has begun, or that has ended."""
        if not told.num_records or told.state in ENDED:
            return None
        return await self.view(f"{submission.job}.{submission.container}")

    def warnings(self, submission: Submission, told: Where) -> tuple[Problem, ...]:
        """What is not as it may have been meant: of the storyboard at once, of the film once it is finished."""
        if told.state != "completed":
            return submission.warnings
        known = self.warned.get(submission.job)
        if known is None or known[0] != told.ended_at:
            if len(self.warned) >= MANY:
                self.warned.clear()
            found = dict.fromkeys((*submission.warnings, *read_warnings(self.store, submission.job)))
            known = self.warned[submission.job] = (told.ended_at, tuple(found))
        return known[1]

    def _plan_of(self, job: str, container: str) -> Plan:
        found = read_job(self.store, job)
        return make_plan(found.film, found.models, numerics(self.pools), container=container, stills=False)

    def tasks(self, submission: Submission) -> list[dict[str, Any]]:
        """Every task of a film with its attempts."""
        plan = self.plan_of(submission.job, submission.container)
        missing = tasks_to_run(plan.tasks, plan.targets, self.store.has)
        tries: dict[str, list[dict[str, Any]]] = {}
        for a in read_attempts(self.store, submission.job):
            tries.setdefault(a.task, []).append(
                {"outcome": a.outcome, "cause": a.cause, "reason": a.reason, "pool": a.pool, "replica": a.replica,
                 "started_at": a.started_at, "ended_at": a.ended_at, "run_s": a.run_s, "gpu_s": a.gpu_s}
            )  # fmt: skip
        return [
            {"key": k, "stage": t.stage, "label": t.label, "is_done": k not in missing, "attempts": tries.get(k, [])}
            for k, t in plan.tasks.items()
        ]

    def clip(self, submission: Submission, shot: str = "") -> str | None:
        """Where the film, or one of its shots, lies in the store; None while it is not there. A shot's clip is there
        before the film is."""
        if not shot:
            path = f"films/{submission.job}/film.{submission.container}"
            return path if path.rsplit("/", 1)[1] in self.store.names(f"films/{submission.job}") else None
        plan = self.plan_of(submission.job, submission.container)
        key = next((s.clip for s in plan.shots if s.id == shot), None)
        if key is None:
            raise NotFound(f"film {submission.job!r} has no shot {shot!r}")
        task = plan.tasks[key]
        return artifact_path(task) if self.store.has(task) else None

    def estimate(self, prepared: Prepared) -> dict[str, Any]:
        """What a film would take, by what tasks like its own have taken here in the last days; see `estimate_of`."""
        plan, names = prepared.plan, {m.place: m.name for m in prepared.job.models}
        missing = tasks_to_run(plan.tasks, plan.targets, self.store.has)
        since = time.strftime("%Y-%m-%d", time.gmtime(self.now() - ESTIMATE_DAYS * 86_400))
        kinds = [(plan.tasks[k].stage, names.get(plan.tasks[k].model, "")) for k in missing]
        return {
            "tasks": len(plan.tasks),
            "to_run": len(missing),
            **estimate_of(kinds, read_ledger(self.store, since=since)),
        }

    # -- changing

    def order(
        self, job: str, caller: Caller, order: str, *, priority: int | None = None, everything: bool = False
    ) -> Submission:  # fmt: skip
        """Raises:
        NotFound, Forbidden.
        """
        found = self.find_to_change(job, caller)
        at = self.now()
        give_order(self.store, found, order, by=caller.name, at=at, priority=priority, everything=everything)
        self.ended.pop(job, None)
        self._note(caller, order, job, at)
        return found

    def delete(self, job: str, caller: Caller) -> Submission:
        """Cancel a film that has not ended, and take it from the lists.

        Raises:
            NotFound, Forbidden.
        """
        found = self.find_to_change(job, caller)
        at = self.now()
        if where(self.store, found).state not in ENDED:
            give_order(self.store, found, "cancel", by=caller.name, at=at)
        delete(self.store, found, at=at)
        self._note(caller, "delete", job, at)
        return found

    def _note(self, caller: Caller, what: str, job: str, at: float) -> None:
        """What is done is done: a store that refuses the note of it must not make it look as if it were not."""
        try:
            note_change(self.store, at=at, by=caller.name, what=what, job=job)
        except (OSError, StoreError) as e:
            log.warning("%s of %s by %s could not be noted: %s", what, job, caller.name, e)
