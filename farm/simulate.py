"""A simulated world: the farm's planning, dispatching, journal and control in virtual time, and all that goes wrong.

As FoundationDB and TigerBeetle test. Replicas, nodes, the store's files, doors and the clock are simulated; everything
else is the code that runs in production. All chance comes from one seed, so a world that goes wrong goes wrong again.
`python -m farm.simulate --worlds 1000` runs many; `--seed N` one, with its story.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from .attempts import AHEAD_S
from .audit import faults_of_job
from .checkpoint import Checkpoint, find_checkpoint
from .control import Control, plan_wish
from .errors import InputError, ReplicaLost, StoreError
from .failure import MAX_FAILURES
from .film import job_id_of
from .fleet import Ran
from .jobs import Job, write_job
from .journal import Held, Owner, Watch, Wish, read_standing, write_order
from .plan import Plan, make_plan
from .pools import Bounds, Pool, numerics, pools_serving
from .resolve import resolve
from .simulated import Instance, SimNode, SimReplica
from .states import ENDED
from .step_checkpoints import forget_steps, keep_step, read_step
from .store import Store
from .storyboard import parse_storyboard
from .task import Task
from .virtual import Files, FileSystem, VirtualLoop

LIMIT_S = 10_000.0  # virtual: a world that has not ended by then never will
NUM_STEPS = 8  # of a simulated denoise task
MADE_WITH = {"world": "simulated"}
SECONDS = {"encode": 1.0, "denoise": 12.0, "decode": 3.0, "interpolate": 3.0, "assemble": 1.0}  # of a task


@cache
def builtin() -> Checkpoint:
    return find_checkpoint("builtin", beside=Path())


BOARD = """\
title: World {seed} {number}
size: 64x48
fps: 8
steps: {steps}
seed: {seed}
shots:
"""


def make_board(rng: random.Random, number: int) -> str:
    """A storyboard of some shots, some of them long."""
    text = BOARD.format(seed=rng.randrange(10**9), number=number, steps=rng.randint(1, 50))
    for i in range(rng.randint(2, 7)):
        text += f"  - {{id: s{i}, prompt: a {rng.choice(['red', 'blue'])} ball rolls, frames: {rng.randint(5, 75)}"
        if i and rng.random() < 0.3:
            text += f", continue_from: s{rng.randrange(i)}"
        elif rng.random() < 0.3:
            text += ", continuity: {mode: blend}"
        elif rng.random() < 0.3:
            text += ", continuity: {max_seam: 1.2, rerolls: 1}"
        text += "}\n"
    return text


class _Errors(logging.Handler):
    """What a controller logs as its own failure is a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and not isinstance(error, OSError | StoreError):
            self.faults.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


class World:
    """One seed's world; `run` lets it live and returns what was wrong with it."""

    def __init__(
        self, seed: int, *, num_faults: int = 14, min_tasks: int = 100, log: Callable[[str], None] | None = None,
        control: Callable[[Control], None] = lambda control: None,
    ) -> None:  # fmt: skip
        """Args:
        num_faults: how many things go wrong, at least.
        control: changes each controller after it is made: for faults of the farm itself that a test puts in.
        """
        self.seed, self.rng, self.log, self.change = seed, random.Random(seed), log, control
        self.loop, self.files = VirtualLoop(), Files()
        self.num_faults, self.story = num_faults, Counter[str]()
        self.trace = hashlib.sha256()
        self.adopts = self.rng.random() < 0.7
        self.max_open = self.rng.choice([1, 2, 64])
        self.pools = self._draw_pools()
        self.nodes = [SimNode(f"node{i}") for i in range(self.rng.randint(2, 5))]
        self.bad_node = ""
        self.replicas: list[SimReplica] = []
        self.instances: list[Instance] = []
        self.background: set[asyncio.Task[Any]] = set()
        self.outage_until = self.full_until = 0.0
        self.loses_answer = False
        self.had_two = False  # controllers, or one that had lost its lease without knowing
        self.store = Store("sim", fs=FileSystem(self.files), sleep=lambda s: None)
        self.plans: dict[str, Plan] = {}
        self.wishes: list[Wish] = []
        self.known_plans: dict[str, tuple[Job, Plan]] = {}
        self.poison: set[str] = set()
        self.flaky: dict[str, int] = {}
        self.hungry: dict[str, int] = {}
        self.true_failures: Counter[str] = Counter()  # by task, those that may count
        self.ordered_to_end: set[str] = set()
        self.running: dict[str, list[SimReplica]] = {}
        self.faults: list[str] = []
        self._draw_films(min_tasks)
        self.is_calm = False
        self.is_exact = not num_faults  # tasks take as long as they should, and answers come at once
        self.ahead_s = AHEAD_S if self.is_exact else self.rng.choice([0.0, AHEAD_S, 30.0])

    # -- what there is

    def _draw_pools(self) -> dict[str, Pool]:
        def bounds() -> Bounds:
            most = self.rng.randint(1, 4)
            return Bounds(min=self.rng.randint(0, most), max=most)

        pools = {
            "encode": Pool(stages=["encode"], replicas=bounds()),
            "denoise": Pool(stages=["denoise"], replicas=bounds(), memory_gib=8),
            "media": Pool(stages=["decode", "interpolate", "assemble"], replicas=bounds(), memory_gib=8),
        }
        if self.rng.random() < 0.3:
            pools["large"] = Pool(stages=["denoise"], replicas=bounds(), memory_gib=16)
        return pools

    def _draw_films(self, min_tasks: int) -> None:
        self.store.create()
        while sum(len(p.tasks) for p in self.plans.values()) < min_tasks:
            text = make_board(self.rng, len(self.wishes))
            film = resolve(parse_storyboard(text.encode(), file="board.yaml"), builtin()).film
            job = Job(job_id_of(film, builtin()), film, (builtin(),), text)
            write_job(self.store, job)
            plan = make_plan(film, job.models, numerics(self.pools), container="mp4", stills=False)
            wish = Wish(job.id, "mp4", False, "farm", self.rng.choice([10, 50, 90]), by=self.rng.choice(["one", "two"]))
            self.wishes.append(wish)
            self.plans[wish.name], self.known_plans[wish.name] = plan, (job, plan)
        if not self.num_faults:
            return
        keys = sorted({k for plan in self.plans.values() for k in plan.tasks})
        for key in keys:
            x = self.rng.random()
            if x < 0.002:
                self.poison.add(key)
            elif x < 0.03:
                self.flaky[key] = self.rng.randint(1, 2)  # failures before it succeeds: fewer than end a task
            elif x < 0.04:
                self.hungry[key] = self.rng.choice([1, 1, 2])  # 1: as soon as it is frugal; 2: in a larger pool

    def plan_of(self, store: Store, pools: Mapping[str, Pool], wish: Wish) -> Any:
        """What `plan_wish` says; read from the store once."""
        from .plan import tasks_to_run

        if self.seed % 50 == 0:
            return plan_wish(store, pools, wish)
        job, plan = self.known_plans[wish.name]
        return job, plan, tasks_to_run(plan.tasks, plan.targets, store.has)

    def content(self, task: Task) -> bytes:
        """What a task puts out: it depends on its key alone, as the farm promises."""
        digest = hashlib.sha256(f"content of {task.key}".encode()).hexdigest()
        return (
            (json.dumps({"sha": digest, "roll": 0}) + "\n").encode() if task.extension == "jsonl" else digest.encode()
        )

    # -- what happens in it

    def tell(self, text: str) -> None:
        line = f"{self.loop.time():10.2f} {text}"
        self.trace.update(line.encode())
        if self.log:
            self.log(line)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits for it, if anybody does

    def harm(self, call: str, when: str) -> None:
        """What may befall a call of the store."""
        now = self.loop.time()
        if now < self.outage_until:
            raise OSError("the store is out of order")
        if call == "write" and when == "before" and now < self.full_until:
            raise OSError(28, "No space left on device")
        if call == "write" and when == "after" and self.loses_answer:
            self.loses_answer = False
            raise OSError("the answer was lost")

    def is_known_dead(self, owner: Owner) -> bool:
        instance = next((i for i in self.instances if i.name == owner.name), None)
        return instance is None or (instance.is_dead and self.rng.random() < 0.5)

    async def compute(
        self, replica: SimReplica, task: Task, inputs: Sequence[tuple[Task, Any]], *, frugal: bool
    ) -> Ran:  # fmt: skip
        """A replica's side of a task."""
        started = self.loop.time()
        store = Store("sim", fs=FileSystem(self.files, self.harm), sleep=lambda s: None)
        self.tell(f"{replica.spec.name} begins {task.stage} {task.key[:6]}")
        others = [r for r in self.running.get(task.key, []) if r.is_alive]
        if others and not self.had_two:
            self.faults.append(f"task {task.key[:8]} runs twice at once")
        self.running.setdefault(task.key, []).append(replica)
        replica.task, replica.step = task.key, 0

        def ended(outcome: Any, reason: str = "", cause: Any = "", **info: Any) -> Ran:
            if frugal:
                info["frugal"] = True
            return Ran(outcome, started, self.loop.time(), 0.0, reason, cause, info=info)

        try:
            try:
                for source, value in inputs:  # a value lives as long as the replica that made it
                    is_in_memory = value is not None and value.is_alive
                    if not is_in_memory and store.read(source) != self.content(source):
                        self.faults.append(f"artifact {source.key[:8]} has other content than it must")
                saved = read_step(store, task.key, made_with=MADE_WITH) if task.stage == "denoise" else None
            except StoreError as e:
                return ended("failed", str(e), "error", input_missing=True)
            except OSError as e:
                return ended("failed", str(e), "error", store_out_of_order=True)
            replica.num_steps = NUM_STEPS if task.stage == "denoise" else 1
            done = int(saved) if saved else 0
            # with faults, shorter: as much goes wrong, and fewer seconds pass in which nothing does
            step_s = SECONDS[task.stage] / replica.num_steps * (1.0 if self.is_exact else self.rng.uniform(0.3, 0.7))
            for step in range(done + 1, replica.num_steps + 1):
                await asyncio.sleep(step_s * (replica.node.slowness if replica.node else 1.0) * (1.5 if frugal else 1))
                if not replica.is_alive:
                    raise ReplicaLost("its process ended")
                replica.step = step
                if task.key in replica.canceled:
                    replica.canceled.discard(task.key)
                    return ended("canceled")
                if (
                    task.stage == "denoise"
                    and step < replica.num_steps
                    and (step % 3 == 0 or task.key in replica.halted)
                ):
                    with contextlib.suppress(OSError, StoreError):
                        keep_step(store, task.key, step, str(step).encode(), made_with=MADE_WITH)
                    if task.key in replica.halted:
                        replica.halted.discard(task.key)
                        return ended("interrupted", "told to", halted=True)
            if task.key in self.poison:
                return ended("failed", "this cannot be rendered", "input")
            if replica.is_bad:
                self.true_failures[task.key] += 1
                return ended("failed", "this machine is broken", "error")
            if self.flaky.get(task.key, 0) > 0:
                self.flaky[task.key] -= 1
                self.true_failures[task.key] += 1
                return ended("failed", "out of luck", "error")
            need = self.hungry.get(task.key, 0)
            if need and not (frugal and (need == 1 or (replica.spec.pool == "large"))):
                return ended("failed", "out of memory", "memory")
            replica.unsaved[task.key] = (task, self.content(task))
            ran = ended("succeeded", resumed_at=done)
            return Ran(ran.outcome, ran.started_at, ran.ended_at, value=replica, info=ran.info)
        finally:
            replica.task = None
            replica.halted.discard(task.key)
            self.running[task.key].remove(replica)

    async def put_away(self, replica: SimReplica, key: str) -> int:
        """A replica's side of writing what it made."""
        await asyncio.sleep(0.01 if self.is_exact else self.rng.uniform(0.05, 2.0))
        if not replica.is_alive:
            raise ReplicaLost("its process ended")
        store = Store("sim", fs=FileSystem(self.files, self.harm), sleep=lambda s: None)
        task, data = replica.unsaved[key]
        record = store.put(task, data)
        if task.stage == "denoise":
            with contextlib.suppress(OSError, StoreError):
                forget_steps(store, key)
        replica.unsaved.pop(key, None)
        if self.rng.random() < 0.02 and not self.is_calm and self.num_faults:
            self.tell(f"{replica.spec.name} dies with {key[:6]} put away and nobody told")
            self.end_replica(replica)
        return int(record["size"])

    # -- what goes wrong

    def end_replica(self, replica: SimReplica) -> None:
        if not replica.ended.done():
            replica.ended.set_result(None)

    def kill(self, instance: Instance) -> None:
        """End a controller; its replicas follow some time later, and another one is started."""
        instance.stop()
        self.spawn(self._clear_up(instance))

    async def _clear_up(self, instance: Instance) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 20.0))
        for replica in instance.replicas:
            self.end_replica(replica)

    def start_controller(self) -> Instance:
        instance = Instance(self, len(self.instances))
        self.change(instance.control)
        self.instances.append(instance)
        self.tell(f"{instance.name} starts")
        self.spawn(self._open(instance))
        return instance

    async def _open(self, instance: Instance) -> None:
        try:
            await instance.call(instance.control.open())
        except ReplicaLost:
            return

    @property
    def alive(self) -> list[Instance]:
        return [i for i in self.instances if not i.is_dead]

    async def _keep_one_controller(self) -> None:
        """As Ray does: a controller that died is started again."""
        while True:
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))
            if not self.alive:
                self.had_two = True  # replicas of the dead one may still run
                self.start_controller()

    def _break_something(self) -> None:
        rng, now = self.rng, self.loop.time()
        kinds = ["replica", "replica", "node", "drain", "slow", "bad", "crash", "crash", "freeze", "outage", "answer",
                 "full", "second", "bad node"]  # fmt: skip
        kind = rng.choice(kinds)
        living = [r for r in self.replicas if r.is_alive]
        nodes = [n for n in self.nodes if n.is_alive]
        instance = rng.choice(self.alive) if self.alive else None
        if kind == "replica" and living:
            self.end_replica(rng.choice(living))
        elif kind in ("node", "drain") and len(nodes) > 1:
            node = rng.choice(nodes)
            node.is_draining = kind == "drain"
            self.loop.call_later(rng.uniform(2, 20) if kind == "drain" else 0, self._lose_node, node)
        elif kind == "slow":
            rng.choice(nodes).slowness = rng.choice([1, 3, 10])
        elif kind == "bad" and living:
            rng.choice(living).is_bad = True
        elif kind == "bad node" and len(nodes) > 1 and not self.bad_node:
            self.bad_node = rng.choice(nodes).name
            self.loop.call_later(rng.uniform(20, 100), self._mend_node)
        elif kind == "crash" and instance:
            instance.dies_at_write = rng.choice(["before", "after"])
        elif kind == "freeze" and instance:
            instance.frozen_until = now + rng.uniform(1, 40)
            self.had_two = True
            if rng.random() < 0.7:
                self._start_another()
        elif kind == "second":
            self.had_two = True
            self._start_another()
        elif kind == "outage":
            self.outage_until = now + rng.uniform(1, 40)
        elif kind == "answer":
            self.loses_answer = True
        elif kind == "full":
            self.full_until = now + rng.uniform(5, 60)
        self.story[kind] += 1
        self.tell(f"breaks: {kind}")

    def _start_another(self) -> None:
        """A second controller, which somebody ends after a while."""
        another = self.start_controller()
        self.loop.call_later(self.rng.uniform(20, 80), self._end_another, another)

    def _end_another(self, instance: Instance) -> None:
        if len(self.alive) > 1 and not instance.is_dead:
            self.tell(f"{instance.name} is ended")
            self.kill(instance)

    def _lose_node(self, node: SimNode) -> None:
        node.is_alive = False
        for replica in self.replicas:
            if replica.node is node:
                self.end_replica(replica)
        self.nodes.append(SimNode(f"node{len(self.nodes)}"))
        self.tell(f"{node.name} is lost")

    def _mend_node(self) -> None:
        for replica in self.replicas:
            if replica.node and replica.node.name == self.bad_node:
                replica.is_bad = False
        self.bad_node = ""

    async def _break_things(self) -> None:
        for _ in range(self.num_faults):
            await asyncio.sleep(self.rng.expovariate(1 / 4))
            self._break_something()
        await asyncio.sleep(60)
        self.is_calm = True
        for node in self.nodes:
            node.slowness = 1.0
        self.tell("from now on nothing breaks")

    async def _give_orders(self) -> None:
        for _ in range(self.rng.randint(0, 4) if self.num_faults else 0):
            await asyncio.sleep(self.rng.expovariate(1 / 25))
            wish = self.rng.choice(self.wishes)
            kind = self.rng.choice(["pause", "priority", "requeue", "pause", "cancel"])
            self.tell(f"order: {kind} {wish.job}")
            self._order(wish, kind)
            if kind == "pause":
                self.loop.call_later(self.rng.uniform(3, 60), self._order, wish, "resume")
            if kind == "cancel":
                self.ordered_to_end.add(wish.job)

    def _order(self, wish: Wish, kind: str) -> None:
        now = self.loop.time()
        write_order(self.store, wish.job, kind, by="somebody", at=now, priority=self.rng.choice([5, 95]),
                    name=f"{int(now * 1000):015d}-{self.rng.randrange(10**6)}")  # fmt: skip

    async def _door(self, wish: Wish) -> str:
        """What `farm render` does, again and again until the job has ended. Some doors close before that."""
        await asyncio.sleep(self.rng.uniform(0, 40) if self.num_faults else 0)
        closes_at = self.loop.time() + self.rng.uniform(5, 100) if self.adopts and self.rng.random() < 0.3 else LIMIT_S
        watch: Watch | None = None
        is_submitted = False
        while self.loop.time() < closes_at or not is_submitted:
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
            if not self.alive:
                continue
            instance = self.rng.choice(self.alive)
            try:
                stale = watch.held if watch and watch.look(watch.held, self.loop.time()) else None
                held: Held | None = await instance.call(instance.control.submit(wish, stale=stale, door=wish.name))
                if held is not None:
                    watch = watch or Watch(held, self.loop.time())
                    watch.look(held, self.loop.time())
                    if read_standing(self.store, wish.job).state in ENDED:
                        return "followed"
                    continue
                watch, is_submitted = None, True
                while self.loop.time() < closes_at:
                    view = await instance.call(instance.control.view(wish.name, wait_s=30.0))
                    if view["status"] in ENDED:
                        self.tell(f"{wish.job} is {view['status']} {view['errors'][:1]}")
                        return str(view["status"])
                    if view["status"] == "lost":
                        break
            except (ReplicaLost, KeyError, OSError, StoreError, InputError):
                continue
        return "closed"

    async def _until_all_ended(self) -> None:
        while True:
            await asyncio.sleep(20)
            states = [read_standing(self.store, w.job) for w in self.wishes]
            if all(s.state in ENDED for s in states) and not (self.adopts and self.store.names("queue")):
                return

    # -- from beginning to end

    def run(self) -> list[str]:
        """Let the world live. Returns what was wrong in the end: nothing, in a good farm."""
        errors = _Errors(self.faults)
        logging.getLogger("farm.control").addHandler(errors)
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._live(), LIMIT_S))
        except TimeoutError:
            for wish in self.wishes:
                standing = read_standing(self.store, wish.job)
                self.faults.append(f"job {wish.job} never ends: {standing.state} ({standing.reason})")
        except RuntimeError as e:
            self.faults.append(str(e))
        finally:
            logging.getLogger("farm.control").removeHandler(errors)
            for instance in self.instances:
                instance.is_dead = True
            while left := asyncio.all_tasks(self.loop):
                for task in left:
                    task.cancel()
                self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
        return [*self.faults, *self._audit()]

    async def _live(self) -> None:
        self.start_controller()
        self.spawn(self._keep_one_controller())
        self.spawn(self._break_things())
        self.spawn(self._give_orders())
        self.started = self.loop.time()
        doors = [self.loop.create_task(self._door(wish)) for wish in self.wishes]
        self.ended_as = await asyncio.gather(*doors)
        self.makespan_s = self.loop.time() - self.started
        await self._until_all_ended()

    def _audit(self) -> list[str]:
        found = []
        for wish in self.wishes:
            plan = self.plans[wish.name]
            found += faults_of_job(self.store, wish.job, plan, is_watched=not self.had_two, is_clear=False)
            if self.adopts and any(name.startswith(f"{wish.job}.") for name in self.store.names("queue")):
                found.append(f"job {wish.job} is still in the queue")
            if self.adopts and any(wish.job in name for name in self.store.names(f"open/{wish.by}")):
                found.append(f"job {wish.job} is still counted as open")
            standing = read_standing(self.store, wish.job)
            for task in plan.tasks.values():
                if self.store.has(task) and self.store.read(task) != self.content(task):
                    found.append(f"artifact {task.key[:8]} has other content than it must")
            lost = self._lost_by_nature(plan)
            unlucky = any(self.true_failures[key] >= MAX_FAILURES for key in plan.tasks)
            if standing.state == "failed" and not (lost or unlucky):
                found.append(f"job {wish.job} failed for no reason of its own: {standing.reason}")
            if standing.state == "completed" and lost.intersection(plan.targets):
                found.append(f"job {wish.job} is completed although it cannot be")
            if standing.state == "canceled" and wish.job not in self.ordered_to_end:
                found.append(f"job {wish.job} was canceled and nobody asked for it")
            if standing.state == "failed" and not unlucky:
                lacking = [k for k in plan.targets if k not in lost and not self.store.has(plan.tasks[k])]
                found += [f"{plan.tasks[k].label} was not finished though nothing was in its way" for k in lacking]
        return found

    def _lost_by_nature(self, plan: Plan) -> set[str]:
        """Tasks that no farm could do: bad input, too little memory everywhere, and what needs them."""
        lost: set[str] = set()
        large = "large" in self.pools
        for key, task in plan.tasks.items():
            is_hungry = self.hungry.get(key, 0) == 2 and not (
                large and "large" in pools_serving(self.pools, task.stage)
            )
            if key in self.poison or is_hungry or lost.intersection(task.inputs):
                lost.add(key)
        return lost


def faults_of(seed: int) -> list[str]:
    return [f"seed {seed}: {fault}" for fault in World(seed).run()]


def faults_of_many(seeds: Sequence[int], *, lived: Callable[[int], bool] = lambda count: True) -> Iterator[str]:
    """What goes wrong in many worlds, which live on all cores that nobody else needs.

    Args:
        lived: is told how many have lived so far; the others do not any more where it says False.
    """
    pool = ProcessPoolExecutor(initializer=_be_humble)
    try:
        for count, faults in enumerate(pool.map(faults_of, seeds, chunksize=5), start=1):
            yield from faults
            if not lived(count):
                return
    finally:
        pool.shutdown(cancel_futures=True)


def _be_humble() -> None:
    if hasattr(os, "SCHED_IDLE"):  # Ray's workers have nice 15 and must not wait for worlds
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)
    gc.set_threshold(50_000, 20, 100)  # worlds are large and live briefly: a tenth of the time went into looking


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Let simulated worlds live, and say what was wrong in them.")
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--seed", type=int, help="this one alone, with its story")
    args = parser.parse_args(argv)
    if args.seed is not None:
        faults = World(args.seed, log=print).run()
        print("\n".join(faults) or "nothing was wrong")
        return bool(faults)
    started, bad = time.monotonic(), set()
    for fault in faults_of_many(range(args.first, args.first + args.worlds)):
        bad.add(fault.partition(":")[0])
        print(fault, flush=True)
    print(f"{args.worlds} worlds, {len(bad)} with faults, {time.monotonic() - started:.0f} s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
