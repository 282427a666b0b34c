"""A film that came in over the service: who asked for it, and how it is found again.

Everything is an object in the store, so any number of servers may answer. What a caller is told is durable: the job
first, then its place in the queue, then its line in the list, which alone is what callers look through.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from farm.errors import FarmError, Problem, problem_from_json
from farm.states import ENDED
from farm.store.jobs import Job, write_job
from farm.store.journal import Standing, Wish, drop_wish, new_orders, read_standing, write_order, write_wish
from farm.store.store import Store

LEFT_S = 600.0  # a film that has been counted for so long without being queued never will be


@dataclass(frozen=True)
class Submission:
    """What stays as it was submitted. Sizes are those delivered; `request` is what a video was asked for with."""

    job: str
    kind: str  # film | video
    by: str  # the key's name
    at: float
    title: str
    model: str
    width: int
    height: int
    fps: float
    frames: int
    shots: tuple[tuple[str, int, int], ...]  # id, frames of the model, chunks
    container: str
    priority: int = 50
    request: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    @property
    def wish(self) -> Wish:
        """Its place in the queue."""
        return Wish(self.job, self.container, False, "", self.priority, self.by, self.at, self.seconds)

    @property
    def list_path(self) -> str:
        return f"submissions/{self.by}/{int(self.at * 1000):015d}-{self.job}.json"


class AlreadyUsed(FarmError):
    """An Idempotency-Key came again with another request, or after its film had been deleted."""


@dataclass(frozen=True)
class Where:
    """Where a submitted film stands, by the store alone."""

    state: str
    reason: str
    priority: int
    ended_at: float | None = None
    num_records: int = 0  # of its journal: none where nobody has begun it


def once(store: Store, by: str, key: str, *, digest: str, job: str) -> str:
    """Give a key of a caller's to one request: the job that has it, this one's or that of an earlier call.

    Raises:
        AlreadyUsed: it came with another request before.
    """
    path = f"requests/{hashlib.sha256(json.dumps([by, key]).encode()).hexdigest()}.json"
    if store.put_record(path, {"digest": digest, "job": job}):
        return job
    found = store.record(path)
    if found["digest"] != digest:
        raise AlreadyUsed(f"Idempotency-Key {key!r} must come with the request that it came with first")
    return str(found["job"])


def keep(store: Store, submission: Submission, job: Job, files: Mapping[str, Path]) -> Submission:
    """Make a submission durable; returns it as it was kept first, where it comes again."""
    path = f"jobs/{job.id}/submission.json"
    write_job(store, job, files)
    if not store.put_record(path, asdict(submission)):
        submission = _from_json(store.record(path))
        if where(store, submission).state in ENDED:  # a retry that overlapped the film's end
            store.remove(submission.wish.count_path)
            return submission
    write_wish(store, submission.wish)
    store.put_record(submission.list_path, {})
    return submission


def read_submission(store: Store, job: str, *, deleted: bool = False) -> Submission | None:
    """None where there is none: never submitted, or deleted, unless those are asked for too."""
    if not job.isalnum() or len(job) > 64:
        return None
    try:
        found = _from_json(store.record(f"jobs/{job}/submission.json"))
    except FileNotFoundError:
        return None
    return None if not deleted and is_deleted(store, job) else found


def is_deleted(store: Store, job: str) -> bool:
    return store.exists(_deleted_path(job))


def _deleted_path(job: str) -> str:
    return f"jobs/{job}/deleted.json"


def _from_json(data: Mapping[str, Any]) -> Submission:
    shots, told = tuple(tuple(s) for s in data["shots"]), tuple(map(problem_from_json, data["warnings"]))
    known = {f.name: data[f.name] for f in fields(Submission) if f.name in data}  # a newer version may say more
    return Submission(**{**known, "shots": shots, "warnings": told})


class Memory:
    """Submissions and journals as one server remembers them: they only grow, so what was read is not read again.

    Safe to use from several threads.
    """

    def __init__(self, store: Store, most: int = 10_000) -> None:
        self.store, self.most = store, most
        self.submissions: dict[str, Submission] = {}
        self.standings: dict[str, Standing] = {}

    def submission(self, job: str) -> Submission | None:
        """As `read_submission`."""
        found = self.submissions.get(job)
        if found is not None:
            return None if is_deleted(self.store, job) else found
        found = read_submission(self.store, job)
        if found is not None:
            _make_room(self.submissions, self.most)
            self.submissions[job] = found
        return found

    def where(self, submission: Submission) -> Where:
        """As the function `where`."""
        job = submission.job
        standing = read_standing(self.store, job, self.standings.get(job))
        _make_room(self.standings, self.most)
        self.standings[job] = standing
        return where_by(self.store, job, standing, submission.priority)


def _make_room(known: dict[str, Any], most: int) -> None:
    if len(known) >= most:
        known.clear()


def where(store: Store, submission: Submission) -> Where:
    return where_is(store, submission.job, priority=submission.priority)


def where_is(store: Store, job: str, *, priority: int = 50) -> Where:
    """Where a film stands by its journal, and by the orders that nobody has carried out yet."""
    return where_by(store, job, read_standing(store, job), priority)


def where_by(store: Store, job: str, standing: Standing, priority: int) -> Where:
    """The same, where the journal has been read."""
    priority = priority if standing.priority is None else standing.priority
    state, reason = standing.state or "queued", standing.reason
    ended_at = standing.at if state in ENDED else None
    if standing.is_open:
        return Where(state, reason, priority, num_records=standing.position)
    for _, order in new_orders(store, job, standing.orders):
        kind, by = order["order"], order["by"]
        if kind == "requeue":
            state, reason, ended_at = "queued", f"requeued by order of {by}", None
        elif kind == "cancel" and state not in ENDED:
            state, reason, ended_at = "canceled", f"canceled by order of {by}", order["at"]
        elif kind == "pause" and state == "queued":
            state, reason = "paused", f"paused by order of {by}"
        elif kind == "resume" and state == "paused":
            state, reason = "queued", ""
        elif kind == "priority":
            priority = order["priority"]
    return Where(state, reason, priority, ended_at, standing.position)


def give_order(
    store: Store, submission: Submission, order: str, *, by: str, at: float, priority: int | None = None,
    everything: bool = False,
) -> None:  # fmt: skip
    """Ask for something to be done about a film. One that nobody has begun leaves the queue when it is canceled, and
    changes its place there with its priority."""
    write_order(store, submission.job, order, by=by, at=at, priority=priority, everything=everything)
    if read_standing(store, submission.job).state is not None:
        return
    wish = submission.wish if priority is None else replace(submission.wish, priority=priority)
    if order == "cancel":
        drop_wish(store, wish)
    elif order == "priority" and f"{wish.name}.json" in store.names("queue"):
        write_wish(store, wish)


def take_room(store: Store, wish: Wish) -> tuple[bool, int, float]:
    """Count a film as its owner's, before it is there: of several servers none then overlooks what another takes on.

    Returns:
        Whether it was not counted before; the films of the owner that have not ended, and their seconds, this one's
        included.
    """
    is_new = store.put_record(wish.count_path, {})
    names = store.names(wish.count_path.rsplit("/", 1)[0])
    return is_new, len(names), sum(map(_seconds_of, names))


def give_room_back(store: Store, by: str) -> None:
    """Forget films that are counted and not in the queue: who wrote them died between the two."""
    waiting = set(store.names("queue"))
    for file in store.files(f"open/{by}"):
        name = file.path.rsplit("/", 1)[-1].rpartition("@")[0]
        is_young = time.time() - file.modified < LEFT_S
        if f"{name}.json" not in waiting and not is_young:
            store.remove(file.path)


@lru_cache(maxsize=100_000)  # 4,000 names: 0.5 ms instead of 3.3, at each submission
def _seconds_of(name: str) -> float:
    told = name.rpartition("@")[2].removesuffix(".json")
    return int(told) / 1000 if told.isdigit() else 0.0


def delete(store: Store, submission: Submission, *, at: float) -> None:
    """Take a film from the lists. What it was made of stays for others, until `farm store gc`."""
    store.put_record(_deleted_path(submission.job), {"at": at})
    store.remove(submission.list_path)


def list_jobs(
    store: Store, owners: Iterable[str] | None, *, after: str = "", newest_first: bool = True
) -> Iterable[str]:  # fmt: skip
    """Jobs in the order in which they were submitted.

    Args:
        owners: whose; everybody's where None.
        after: begin behind this job; with the first where it is not listed.
    """
    people = store.names("submissions") if owners is None else owners
    rows = [sorted(store.names(f"submissions/{name}"), reverse=newest_first) for name in people]
    jobs = [row.removesuffix(".json").partition("-")[2] for row in heapq.merge(*rows, reverse=newest_first)]
    return jobs[jobs.index(after) + 1 :] if after in jobs else jobs
