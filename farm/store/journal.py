"""What happened to a job: a log of small records, orders to it, and every attempt at its tasks.

The log is one object a record, numbered, each put if absent. So all who write agree on one order, and whoever holds
the job's lease can be sure of it: a lease is a record with a higher *fence* number than the one before, every record
carries its writer's fence, and a writer whose lease has passed to another finds its next number taken. Who holds a
lease shows that it lives by a counter under `beats/` that it raises; one that stands still for LEASE_S, by the clock of
whoever watches, is taken over. No two clocks are ever compared.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from farm.errors import DamagedRecord, InputError, LeaseLost
from farm.states import ENDED, JobState, job_after
from farm.store.store import Store
from farm.task import Attempt

BEAT_S = 2.0
LEASE_S = 12.0  # several beats: a store that is slow for a moment must not cost a lease
ORDERS = ("pause", "resume", "cancel", "requeue", "priority")
Record = dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """Who drives jobs: one controller from its start to its end. `name` is never used twice."""

    name: str
    host: str = ""  # with its boot, so that process ids mean something
    pid: int = 0
    started: float = 0.0  # of that process


@dataclass(frozen=True)
class Held:
    """Somebody else's lease, and how far its counter was when we looked."""

    fence: int
    owner: Owner
    beat: int


@dataclass
class Watch:
    """How long a lease has not given a sign of life, by our own clock."""

    held: Held
    since: float

    def look(self, held: Held, now: float) -> bool:
        """Note what is seen now; whether the lease may be taken over."""
        if held != self.held:
            self.held, self.since = held, now
        return now - self.since >= LEASE_S


@dataclass
class Standing:
    """What a job's log says."""

    position: int = 0  # number of its last record
    fence: int = 0
    owner: Owner | None = None  # None where the lease was given back
    state: JobState | None = None
    reason: str = ""
    run_fence: int = 0  # the fence under which this run of the job was submitted: older attempts do not count
    orders: set[str] = field(default_factory=set)  # that have been carried out
    forgiven: set[str] = field(default_factory=set)  # attempts that count no more
    paused_by_farm: bool = False  # it goes on by itself
    priority: int | None = None
    at: float = 0.0  # when its state was written
    num_damaged: int = 0  # records that cannot be read: each may have been a lease, whose fence nobody must have again

    def copy(self) -> Standing:
        return replace(self, orders=set(self.orders), forgiven=set(self.forgiven))

    def read(self, record: Record) -> None:
        """Take in the next record."""
        self.position += 1
        kind = record["kind"]
        if kind == "lease":
            known = {f.name: record["owner"][f.name] for f in fields(Owner) if f.name in record["owner"]}
            self.fence, self.owner = record["fence"], Owner(**known)  # of a newer version it may say more
        elif kind == "release":
            self.owner = None
        elif kind == "damaged":
            self.num_damaged += 1
        elif kind == "state":
            self.state, self.reason, self.at = record["state"], record["reason"], record["at"]
            if record["event"] in ("submit", "requeue"):
                self.run_fence = record["fence"]
        if record.get("order"):  # carried out by this record, whatever it is
            self.orders.add(record["order"])
        self.forgiven.update(record.get("forgiven", ()))
        self.paused_by_farm = record.get("by_farm", self.paused_by_farm)
        self.priority = record.get("priority", self.priority)

    @property
    def is_open(self) -> bool:
        """Whether the job has been begun and not ended."""
        return self.state is not None and self.state not in ENDED


def log_path(job: str, position: int) -> str:
    return f"jobs/{job}/journal/{position:08d}.json"


def read_log(store: Store, job: str, *, after: int = 0) -> list[Record]:
    """The records of a job's log after a position, each number's.

    One that is damaged or gone counts as a record that says nothing: what it said shows again in what follows, or the
    job is taken on anew by what its store holds.
    """
    names = store.names(f"jobs/{job}/journal")
    last = max((int(n.removesuffix(".json")) for n in names if n.endswith(".json")), default=0)
    return [_log_record(store, job, number) for number in range(after + 1, last + 1)]


def _log_record(store: Store, job: str, number: int) -> Record:
    try:
        record = store.record(log_path(job, number))
        Standing().read(record)  # all that it must have is there
    except (FileNotFoundError, DamagedRecord, KeyError, TypeError):
        return {"kind": "damaged", "fence": 0, "writer": "", "at": 0.0}
    return record


def read_standing(store: Store, job: str, known: Standing | None = None) -> Standing:
    """What a job's log says; `known` is what it said before, whose records are not read again."""
    standing = known.copy() if known else Standing()
    for record in read_log(store, job, after=standing.position):
        standing.read(record)
    return standing


class Journal:
    """The log of one job, as the holder of its lease writes it."""

    def __init__(self, store: Store, job: str, owner: Owner, standing: Standing, now: Callable[[], float]) -> None:
        self.store, self.job, self.owner, self.standing, self.now = store, job, owner, standing, now
        self.fence = standing.fence
        self.beats = 0

    def append(self, kind: str, **fields: Any) -> None:
        """Add a record.

        Raises:
            LeaseLost: the job has passed to another.
        """
        record = {"kind": kind, "fence": self.fence, "writer": self.owner.name, "at": self.now(), **fields}
        if not _put_next(self.store, self.job, self.standing, record):
            raise LeaseLost(f"job {self.job} has passed from {self.owner.name} to another controller")

    def move(self, event: str, reason: str, **fields: Any) -> JobState:
        """Take the job to its next state, and say why."""
        state = job_after(self.standing.state, event)
        self.append("state", state=state, event=event, reason=reason, **fields)
        return state

    def beat(self) -> None:
        """Show that the holder lives, and see whether it still holds.

        Raises:
            LeaseLost: it does not.
        """
        self.beats += 1
        self.store.publish(_beat_path(self.job, self.fence), str(self.beats).encode())
        for record in read_log(self.store, self.job, after=self.standing.position):
            if record["fence"] != self.fence:
                raise LeaseLost(f"job {self.job} has passed from {self.owner.name} to another controller")
            self.standing.read(record)

    def release(self) -> None:
        self.append("release")


def take_lease(
    store: Store, job: str, owner: Owner, *, now: Callable[[], float], stale: Held | None = None,
    is_dead: Callable[[Owner], bool] = lambda owner: False,
) -> Journal | Held:  # fmt: skip
    """Take a job, where nobody has it, or who has it is dead or has given no sign of life for long.

    Args:
        stale: the lease that was watched for LEASE_S and gave none.
        is_dead: whether an owner is known to have ended.
    """
    while True:
        standing = read_standing(store, job)
        if standing.owner is not None and standing.owner != owner:
            held = look_at_lease(store, job, standing)
            assert held is not None
            if held != stale and not is_dead(held.owner):
                return held
        record = {
            "kind": "lease",
            "fence": standing.fence + standing.num_damaged + 1,
            "owner": asdict(owner),
            "writer": owner.name,
            "at": now(),
        }
        if _put_next(store, job, standing, record):
            return Journal(store, job, owner, standing, now)


def look_at_lease(store: Store, job: str, standing: Standing | None = None) -> Held | None:
    """Who has a job now; None where nobody does."""
    standing = standing or read_standing(store, job)
    if standing.owner is None:
        return None
    try:
        beat = int(store.cat(_beat_path(job, standing.fence)))
    except FileNotFoundError:
        beat = 0
    except ValueError:  # read while it was written
        beat = -1
    return Held(standing.fence, standing.owner, beat)


def _beat_path(job: str, fence: int) -> str:
    return f"jobs/{job}/beats/{fence}"


def _put_next(store: Store, job: str, standing: Standing, record: Record) -> bool:
    """Put a record at the end of a log as we know it; False where somebody else's stands there."""
    number = standing.position + 1
    if not store.put_record(log_path(job, number), record):
        is_ours = _log_record(store, job, number) | {"at": 0} == record | {"at": 0}  # and only the answer was lost
        if not is_ours:
            return False
    standing.read(record)
    return True


# -- orders


def write_order(
    store: Store, job: str, order: str, *, by: str, at: float, priority: int | None = None, everything: bool = False,
    name: str = "",
) -> str:  # fmt: skip
    """Ask whoever drives a job to do something about it. Returns the order's name.

    Args:
        order: pause | resume | cancel | requeue | priority.
        by: who asks, for the journal.
        at: seconds since the epoch, for their order.
        everything: requeue what is done, too.
        name: where it shall be known before: two of one name are one.
    Raises:
        InputError: there is no such job.
    """
    if order not in ORDERS:
        raise InputError(f"an order must be one of {', '.join(ORDERS)}, got {order!r}")
    if "job.json" not in store.names(f"jobs/{job}"):
        raise InputError(f"there is no job {job!r} in the store {store.uri}")
    name = name or f"{int(at * 1000):015d}-{uuid.uuid4().hex[:8]}"
    record = {"order": order, "by": by, "at": at, "priority": priority, "everything": everything}
    store.put_record(f"jobs/{job}/orders/{name}.json", record)
    if order in ("resume", "requeue"):
        for wanted in store.records(f"jobs/{job}/wanted"):
            write_wish(store, Wish(**wanted))
    return name


def new_orders(store: Store, job: str, done: set[str]) -> list[tuple[str, Record]]:
    """Orders that have not been carried out, by name, the oldest first."""
    names = [n.removesuffix(".json") for n in store.names(f"jobs/{job}/orders") if n.endswith(".json")]
    found = []
    for name in (n for n in names if n not in done):
        with suppress(DamagedRecord):  # nobody knows what it asked for
            found.append((name, store.record(f"jobs/{job}/orders/{name}.json")))
    return found


# -- what wants to be rendered: a controller that stays looks here for work, and for what another has left


@dataclass(frozen=True)
class Wish:
    """A job to be rendered: in which container, with stills or not, and by which farm: any, where it names none."""

    job: str
    container: str
    stills: bool
    farm: str
    priority: int = 50
    by: str = ""  # whose film it is, where somebody keeps count
    at: float = 0.0  # when it was submitted
    film_s: float = 0.0  # the film's length

    @property
    def name(self) -> str:
        return f"{self.job}.{self.container}{'.stills' if self.stills else ''}"

    @property
    def count_path(self) -> str:
        """Stands there while the film has not ended, so that a listing tells how much its owner has."""
        return f"open/{self.by}/{self.name}@{round(self.film_s * 1000)}.json"


def write_wish(store: Store, wish: Wish) -> None:
    if wish.by:
        store.publish(wish.count_path, b"{}")
    for folder in (f"jobs/{wish.job}/wanted", "queue"):
        store.publish(f"{folder}/{wish.name}.json", _as_bytes(asdict(wish)))


def drop_wish(store: Store, wish: Wish) -> None:
    if wish.by:
        store.remove(wish.count_path)
    store.remove(f"queue/{wish.name}.json")


def _as_bytes(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


# -- attempts


def write_attempt(store: Store, attempt: Attempt, details: str = "") -> None:
    """Note how an attempt ended. The first record of an attempt stays.

    Args:
        details: of a failure: its traceback, and the end of the replica's log. They lie beside the record.
    """
    path = f"jobs/{attempt.job}/attempts/{attempt.attempt_id}"
    if details:
        store.put_if_absent(f"{path}.log", details.encode("utf-8", "replace"))
    store.put_record(f"{path}.json", vars(attempt))


def read_details(store: Store, attempt: Attempt) -> str:
    """What else is known of a failed attempt; empty where nothing is."""
    try:
        return store.cat(f"jobs/{attempt.job}/attempts/{attempt.attempt_id}.log").decode()
    except FileNotFoundError:
        return ""


def read_attempts(store: Store, job_id: str) -> list[Attempt]:
    """All attempts of a job, by start."""
    rows = []
    for row in store.records(f"jobs/{job_id}/attempts"):
        with suppress(TypeError):  # of another version, or damaged
            rows.append(Attempt(**row))
    return sorted(rows, key=lambda a: a.started_at)
