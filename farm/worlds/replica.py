"""A simulated replica: what it computes, how that fails, and how it puts away what it has made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from farm.control.fleet import Ran, ReplicaSpec
from farm.errors import ReplicaLost, StoreError
from farm.store.step_checkpoints import forget_steps, keep_step, read_step
from farm.store.store import Store
from farm.task import Cause, Outcome, Task
from farm.worlds.weather import Weather, content_of

NUM_STEPS = 8  # of a simulated denoise task
MADE_WITH = {"world": "simulated"}
SECONDS = {"encode": 1.0, "denoise": 12.0, "decode": 3.0, "interpolate": 3.0, "assemble": 1.0}  # of a task


@dataclass
class SimNode:
    name: str
    is_alive: bool = True
    is_draining: bool = False
    slowness: float = 1.0


@dataclass
class SimReplica:
    """A replica in the world. What it computes goes on when nobody listens any more."""

    spec: ReplicaSpec
    node: SimNode | None
    ended: asyncio.Future[None]
    is_bad: bool = False  # fails whatever it is given
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # it runs one task after another
    begun: set[str] = field(default_factory=set)  # keys of tasks whose loss with it may count as a failure
    step: int = 0
    num_steps: int = 1
    task: str | None = None
    canceled: set[str] = field(default_factory=set)
    halted: set[str] = field(default_factory=set)
    unsaved: dict[str, tuple[Task, bytes]] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return not self.ended.done() and self.node is not None and self.node.is_alive


def end_replica(replica: SimReplica) -> None:
    if not replica.ended.done():
        replica.ended.set_result(None)


async def compute(
    weather: Weather, replica: SimReplica, task: Task, inputs: Sequence[tuple[Task, Any]], *, frugal: bool
) -> Ran:
    """A replica's side of a task: it reads its inputs, does its steps, and ends in one of the world's ways."""
    started = weather.loop.time()
    weather.tell(f"{replica.spec.name} begins {task.stage} {task.key[:6]}")
    others = [r for r in weather.running.get(task.key, []) if r.is_alive]
    if others and not weather.had_two:
        weather.faults.append(f"task {task.key[:8]} runs twice at once")
    weather.running.setdefault(task.key, []).append(replica)
    replica.task, replica.step = task.key, 0
    store = weather.open_store(weather.harm)
    try:
        done, end = _read_inputs(weather, store, task, inputs)
        end = end or await _step_through(weather, replica, store, task, done=done, frugal=frugal)
        end = end or _verdict(weather, replica, task, frugal=frugal) or End("succeeded", info={"resumed_at": done})
    finally:
        replica.task = None
        replica.halted.discard(task.key)
        weather.running[task.key].remove(replica)
    if end.outcome == "succeeded":
        replica.unsaved[task.key] = (task, content_of(task))
    return Ran(
        end.outcome, started, weather.loop.time(), 0.0, end.reason, end.cause,
        value=replica if end.outcome == "succeeded" else None, info=end.info | ({"frugal": True} if frugal else {}),
    )  # fmt: skip


@dataclass(frozen=True)
class End:
    """How a simulated task ends."""

    outcome: Outcome
    reason: str = ""
    cause: Cause = ""
    info: dict[str, Any] = field(default_factory=dict)


def _read_inputs(
    weather: Weather, store: Store, task: Task, inputs: Sequence[tuple[Task, Any]]
) -> tuple[int, End | None]:
    """The step that a task goes on from, and its end where the store does not give what it needs."""
    try:
        for source, value in inputs:  # a value lives as long as the replica that made it
            is_in_memory = value is not None and value.is_alive
            if not is_in_memory and store.read(source) != content_of(source):
                weather.faults.append(f"artifact {source.key[:8]} has other content than it must")
        saved = read_step(store, task.key, made_with=MADE_WITH) if task.stage == "denoise" else None
    except StoreError as e:
        return 0, End("failed", str(e), "error", {"input_missing": True})
    except OSError as e:
        return 0, End("failed", str(e), "error", {"store_out_of_order": True})
    return int(saved) if saved else 0, None


async def _step_through(
    weather: Weather, replica: SimReplica, store: Store, task: Task, *, done: int, frugal: bool
) -> End | None:
    """Do the steps that are left; an end where somebody ends the task between two of them."""
    is_denoising = task.stage == "denoise"
    replica.num_steps = NUM_STEPS if is_denoising else 1
    # with faults, shorter: as much goes wrong, and fewer seconds pass in which nothing does
    step_s = SECONDS[task.stage] / replica.num_steps * (1.0 if weather.is_exact else weather.rng.uniform(0.3, 0.7))
    for step in range(done + 1, replica.num_steps + 1):
        await asyncio.sleep(step_s * (replica.node.slowness if replica.node else 1.0) * (1.5 if frugal else 1))
        if not replica.is_alive:
            raise ReplicaLost("its process ended")
        replica.step = step
        if task.key in replica.canceled:
            replica.canceled.discard(task.key)
            return End("canceled")
        is_halted = task.key in replica.halted
        if is_denoising and step < replica.num_steps and (step % 3 == 0 or is_halted):
            with contextlib.suppress(OSError, StoreError):
                keep_step(store, task.key, step, str(step).encode(), made_with=MADE_WITH)
            if is_halted:
                replica.halted.discard(task.key)
                return End("interrupted", "told to", info={"halted": True})
    return None


def _verdict(weather: Weather, replica: SimReplica, task: Task, *, frugal: bool) -> End | None:
    """How a task fails whose steps are done, if it does."""
    if task.key in weather.poison:
        return End("failed", "this cannot be rendered", "input")
    if replica.is_bad:
        weather.true_failures[task.key] += 1
        return End("failed", "this machine is broken", "error")
    if weather.flaky.get(task.key, 0) > 0:
        weather.flaky[task.key] -= 1
        weather.true_failures[task.key] += 1
        return End("failed", "out of luck", "error")
    need = weather.hungry.get(task.key, 0)
    if need and not (frugal and (need == 1 or replica.spec.pool == "large")):
        return End("failed", "out of memory", "memory")
    return None


async def put_away(weather: Weather, replica: SimReplica, key: str) -> int:
    """A replica's side of writing what it made."""
    await asyncio.sleep(0.01 if weather.is_exact else weather.rng.uniform(0.05, 2.0))
    if not replica.is_alive:
        raise ReplicaLost("its process ended")
    store = weather.open_store(weather.harm)
    task, data = replica.unsaved[key]
    record = store.put(task, data)
    if task.stage == "denoise":
        with contextlib.suppress(OSError, StoreError):
            forget_steps(store, key)
    replica.unsaved.pop(key, None)
    if weather.rng.random() < 0.02 and not weather.is_calm and weather.num_faults:
        weather.tell(f"{replica.spec.name} dies with {key[:6]} put away and nobody told")
        end_replica(replica)
    return int(record["size"])
