"""The replicas of the pools as a controller sees them, and the hands that it needs to start, use and stop them.

How the hands do it is for others to say: actors/pool.py on Ray, farm/worlds in a simulated one.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from farm.control.failure import is_bad_replica, nodes_to_avoid
from farm.control.scaling import may_leave, num_replicas_wanted
from farm.pools.gangs import sharing_of
from farm.pools.parallel import Sharing
from farm.pools.pools import Pool, numerics_of, stages_of
from farm.task import Cause, Outcome, Task

MAX_START_FAILURES = 5  # in a row, before the films that need the pool fail


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told when it is made; `numerics` by stage."""

    name: str
    pool: str
    stages: tuple[str, ...]
    numerics: dict[str, dict[str, Any]]
    placement: dict[str, dict[str, Any]]  # by stage: how it is loaded, as far as that changes no bits
    cpus: int
    gpus: float
    store_uri: str
    package: str  # whose modules are the stages: `pipelines`, or stand-ins of a benchmark
    checkpoint_s: float = 0.0  # seconds between step checkpoints; 0: none but on notice
    checkpoint_steps: int = 0  # the same in steps
    sharing: Sharing | None = None  # of a gang: how its ranks share tasks
    gang_timeout_s: float = 0.0  # how long one of them waits for the others


@dataclass(frozen=True)
class Ran:
    """How an attempt went, before its output is persisted. `value` refers to the artifact's bytes."""

    outcome: Outcome
    started_at: float
    ended_at: float
    load_s: float = 0.0
    reason: str = ""
    cause: Cause = ""
    value: Any = None
    peak_memory_bytes: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    details: str = ""  # of a failure: the whole traceback, and the end of the process's log


@dataclass(frozen=True)
class Status:
    """What a replica is doing; `preview` only where it is new."""

    task: str | None
    step: int
    num_steps: int
    preview: bytes = b""
    is_leaving: bool = False  # it was told to end, and takes no more work
    other_nodes: tuple[str, ...] = ()  # of a gang: where its ranks but the first are


@dataclass
class Slot:
    """One replica."""

    name: str
    pool: str
    handle: Any
    node: str = ""  # empty until it has started
    pid: int = 0
    other_nodes: tuple[str, ...] = ()  # where more of it is, of a gang
    busy: str | None = None  # key of the task it runs, as far as is known
    ahead: str | None = None  # of the one that waits there behind it
    began: dict[str, float] = field(default_factory=dict)  # when its tasks began, until each is put away
    pace: dict[type, tuple[str, str, float]] = field(default_factory=dict)  # by kind: stage, model, seconds by cost
    num_saving: int = 0  # outputs that it has still to put into the store
    is_leaving: bool = False  # it gets no more tasks
    was_told: bool = False  # by its machine, to end
    lent_to: str = ""  # key of the task, run by another replica, that it predicts slices for while it is idle
    is_prepared: bool = False  # for that
    idle_since: float = 0.0
    start_failures: int = 0  # of its pool when it was asked for
    status: Status | None = None
    failed: dict[str, None] = field(default_factory=dict)  # keys of tasks

    @property
    def is_free(self) -> bool:
        return bool(self.node) and self.busy is None and not self.is_leaving

    @property
    def given(self) -> list[str]:
        """Keys of all tasks that it has."""
        return [key for key in (self.busy, self.ahead) if key]

    def give(self, key: str, now: float) -> None:
        if self.busy is None:
            self.busy, self.began[key] = key, now
        else:
            self.ahead = key

    def take_off(self, key: str, now: float) -> None:
        """It has told how that task went; the one behind it begins."""
        if self.busy == key:
            self.busy, self.status, self.idle_since = None, None, now
            if self.ahead:
                key, self.ahead = self.ahead, None
                self.give(key, now)
        elif self.ahead == key:  # its answer came before that of the task in front of it
            self.ahead = None

    def note_pace(self, task: Task, seconds: float) -> None:
        """A task took so long, without loading. A replica holds one model of a stage: what another one took is past."""
        self.pace = {k: p for k, p in self.pace.items() if p[0] != task.stage or p[1] == task.model}
        if task.cost > 0:
            self.pace[type(task.request)] = (task.stage, task.model, seconds / task.cost)

    def expected_s(self, task: Task) -> float:
        """What a task will take here, by the last one of its kind and model; infinite where none has run."""
        _, model, pace = self.pace.get(type(task.request), ("", "", 0.0))
        return pace * task.cost if pace and model == task.model and task.cost > 0 else math.inf


class Hands(Protocol):
    """What a controller can do to replicas. All of it may raise `ReplicaLost`; what returns nothing never does."""

    def start(self, spec: ReplicaSpec, pool: Pool, *, avoid: Sequence[str]) -> Any:
        """Ask for a replica on any node but these. Returns its handle."""

    async def place(self, handle: Any) -> tuple[str, int]:
        """Wait until it has started: its node and process id."""

    async def run(self, handle: Any, task: Task, inputs: Sequence[tuple[Task, Any]], *, frugal: bool) -> Ran: ...

    async def persist(self, handle: Any, key: str) -> int:
        """Put a finished task's artifact into the store: its size in bytes.

        Raises:
            StoreFull: it is kept for another try.
            StoreError, OSError: the store refused, and it is lost.
        """

    async def status(self, handle: Any) -> Status: ...

    async def last_words(self, node: str, pid: int) -> str:
        """The end of the log of a replica that has died; empty where it cannot be had."""

    async def prepare(self, handle: Any, task: Task, inputs: Sequence[tuple[Task, Any]]) -> None:
        """Get a replica ready to predict slices of a task that another one runs."""

    def lend(self, handle: Any, key: str, helpers: Mapping[str, Any]) -> None: ...

    def cancel(self, handle: Any, key: str) -> None:
        """Stop a task between two steps."""

    def halt(self, handle: Any, key: str) -> None:
        """The same, and keep its state first, for another replica."""

    def warm(self, handle: Any, wanted: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> None: ...

    def stop(self, handle: Any) -> None: ...

    def reap(self) -> None:
        """Free what gangs hold that no controller of this farm knows any more."""

    def is_node_alive(self, node: str) -> bool: ...

    def nodes(self) -> list[str]:
        """Those that are alive."""

    def draining(self) -> list[str]:
        """Nodes that will be taken away soon."""

    def cluster(self) -> str:
        """What the cluster has, in words."""


class Fleet:
    """All replicas of a farm, those that are still starting included."""

    def __init__(self, pools: Mapping[str, Pool], hands: Hands, *, store_uri: str, package: str) -> None:
        self.pools, self.hands, self.store_uri, self.package = pools, hands, store_uri, package
        self.stages = {name: stages_of(pools, name) for name in pools}
        self.slots: dict[str, Slot] = {}
        self.numbers = itertools.count()
        self.replaced: Counter[str] = Counter()  # replicas that failed too much, by node
        self.start_failures: Counter[str] = Counter()  # in a row, by pool
        self.closing = False  # the farm ends: nothing is started or judged any more

    def holding(self, keys: Collection[str]) -> list[tuple[Slot, str]]:
        """Which replicas have some of these tasks: each with its task."""
        return [(slot, key) for slot in self.slots.values() for key in slot.given if key in keys]

    def of(self, pool: str) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.pool == pool]

    def scale(self, name: str, *, waiting: int, now: float) -> list[Slot]:
        """Bring a pool nearer to the size that its work asks for. Returns the replicas that were asked for."""
        bounds = self.pools[name].replicas
        slots = [slot for slot in self.of(name) if not slot.is_leaving]
        busy = sum(len(slot.given) for slot in slots)
        wanted = num_replicas_wanted(waiting=waiting, busy=busy, least=bounds.min, most=bounds.max)
        asked_for = [self._start(name) for _ in range(wanted - len(slots))]
        left = len(slots)
        for slot in slots:
            is_idle = slot.is_free and not slot.lent_to and not slot.num_saving
            if is_idle and may_leave(idle_s=now - slot.idle_since, num_replicas=left, wanted=wanted):
                self.drop(slot)
                left -= 1
        return asked_for

    def note_failure(self, slot: Slot, key: str) -> None:
        """A replica has failed a task; one that fails several different ones leaves."""
        slot.failed[key] = None
        if is_bad_replica(slot.failed) and not slot.is_leaving:
            self.replaced[slot.node] += 1
            self.dismiss(slot)

    def dismiss(self, slot: Slot) -> None:
        """Give a replica no more tasks, and stop it when it has put away what it made."""
        slot.is_leaving = True
        if slot.ahead:
            self.hands.halt(slot.handle, slot.ahead)
        if slot.name in self.slots and slot.busy is None and not slot.num_saving:
            self.drop(slot)

    def drop(self, slot: Slot) -> None:
        """Stop a replica and forget it."""
        slot.is_leaving = True
        if self.slots.pop(slot.name, None) is not None:
            self.hands.stop(slot.handle)

    def _start(self, name: str) -> Slot:
        pool, stages = self.pools[name], tuple(self.stages[name])
        replica = f"{name}-{next(self.numbers)}"
        spec = ReplicaSpec(
            name=replica, pool=name, stages=stages, cpus=pool.cpus, gpus=pool.gpus, store_uri=self.store_uri,
            package=self.package, numerics={s: dict(numerics_of(pool, s)) for s in stages if s != "assemble"},
            placement={s: placed for s in stages if (placed := pool.options.placement_of(s))},
            checkpoint_s=pool.checkpoint.seconds, checkpoint_steps=pool.checkpoint.steps, sharing=sharing_of(pool),
            gang_timeout_s=pool.gang_timeout_s,
        )  # fmt: skip
        avoid = nodes_to_avoid(self.replaced, self.hands.nodes()) if self.replaced else []
        handle = self.hands.start(spec, pool, avoid=avoid)
        slot = self.slots[replica] = Slot(replica, name, handle, start_failures=self.start_failures[name])
        return slot
