"""Who acts in a simulated world: a mortal controller, and the hands by which it reaches replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from farm.control.control import Control
from farm.control.fleet import Ran, ReplicaSpec, Status
from farm.control.jobs import Planned
from farm.errors import ReplicaLost
from farm.pools.pools import Pool
from farm.store.journal import Owner
from farm.task import Task
from farm.worlds.replica import SimNode, SimReplica, compute, end_replica, put_away
from farm.worlds.weather import Weather


class Killed(BaseException):
    """Raised inside a controller that has died, wherever it tries to touch the world."""


class Instance:
    """One controller from its start to its end. It can be killed at any call, and stand still for a while."""

    def __init__(
        self, world: Weather, number: int, *, pools: Mapping[str, Pool], nodes: list[SimNode], max_open: int,
        adopts: bool, ahead_s: float, is_dead: Callable[[Owner], bool], plan: Callable[..., Planned],
    ) -> None:  # fmt: skip
        self.world, self.name, self.nodes = world, f"controller-{number}", nodes
        self.is_dead, self.dies_at_write = False, ""
        self.frozen_until = 0.0
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.replicas: list[SimReplica] = []
        self.control = Control(
            world.open_store(self.harm), pools, SimHands(world, self), owner=Owner(self.name), farm="farm", io=self.io,
            now=world.loop.time, adopts=adopts, is_dead=is_dead, plan=plan, max_open=max_open,
        )  # fmt: skip
        self.control.work.ahead_s = ahead_s

    def harm(self, call: str, when: str) -> None:
        if self.is_dead:
            raise Killed
        if call == "write" and self.dies_at_write == when:
            self.world.tell(f"{self.name} dies {when} a write")
            self.kill()
            raise Killed
        self.world.harm(call, when)

    async def thaw(self) -> None:
        while self.frozen_until > self.world.loop.time():
            await asyncio.sleep(self.frozen_until - self.world.loop.time())
        if self.is_dead:
            raise Killed

    async def io(self, work: Callable[..., Any], *values: Any, **named: Any) -> Any:
        await self.thaw()
        await asyncio.sleep(self.world.rng.uniform(0.001, 0.02))
        await self.thaw()
        return work(*values, **named)

    async def call(self, method: Coroutine[Any, Any, Any]) -> Any:
        """A door's call of a method of the controller.

        Raises:
            ReplicaLost: the controller died.
        """
        task = asyncio.ensure_future(method)
        self.tasks[task] = None
        task.add_done_callback(self.tasks.pop)
        try:
            await self.thaw()
            return await asyncio.shield(task)
        except (Killed, asyncio.CancelledError):
            if not self.is_dead:
                raise
            raise ReplicaLost("the controller died") from None

    def kill(self) -> None:
        """End it; its replicas follow some time later, and another one is started."""
        self.stop()
        self.world.spawn(self._end_replicas())

    async def _end_replicas(self) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.0, 20.0))
        for replica in self.replicas:
            end_replica(replica)

    def stop(self) -> None:
        self.is_dead = True
        for task in [*self.tasks, *self.control.jobs.background]:
            task.cancel()


class SimHands:
    """`farm.control.fleet.Hands` in the simulated world."""

    def __init__(self, world: Weather, owner: Instance) -> None:
        self.world, self.owner = world, owner

    def start(self, spec: ReplicaSpec, pool: Pool, *, avoid: Sequence[str]) -> SimReplica:
        world = self.world
        able = [n for n in self.owner.nodes if n.is_alive and not n.is_draining and n.name not in avoid]
        node = world.rng.choice(able) if able else None
        replica = SimReplica(spec, node, world.loop.create_future())
        replica.is_bad = bool(node and node.name == world.bad_node)
        self.owner.replicas.append(replica)
        world.replicas.append(replica)
        return replica

    async def place(self, replica: SimReplica) -> tuple[str, int]:
        while replica.node is None:  # as Ray, which waits until there is one
            await asyncio.sleep(1.0)
            able = [n for n in self.owner.nodes if n.is_alive and not n.is_draining]
            replica.node = self.world.rng.choice(able) if able else None
        await self._answer(replica, asyncio.sleep(self.world.rng.uniform(0.5, 4)))
        return replica.node.name, 1

    async def run(
        self, replica: SimReplica, task: Task, inputs: Sequence[tuple[Task, Any]], *, frugal: bool
    ) -> Ran:  # fmt: skip
        async def in_turn() -> Ran:
            async with replica.turn:
                if not replica.is_alive:
                    raise ReplicaLost("its process ended")
                if task.key in replica.canceled | replica.halted:
                    replica.canceled.discard(task.key)
                    replica.halted.discard(task.key)
                    now = self.world.loop.time()
                    return Ran("interrupted", now, now, reason="told to stop before it began", info={"halted": True})
                replica.begun.add(task.key)
                return await compute(self.world, replica, task, inputs, frugal=frugal)

        # for a controller it has begun where nothing is in front of it
        (replica.begun.discard if replica.turn.locked() else replica.begun.add)(task.key)
        ran: Ran = await self._answer(replica, in_turn(), task.key)
        return ran

    async def persist(self, replica: SimReplica, key: str) -> int:
        size: int = await self._answer(replica, put_away(self.world, replica, key), key)
        return size

    async def last_words(self, node: str, pid: int) -> str:
        return f"process {pid} of {node} has gone"

    async def status(self, replica: SimReplica) -> Status:
        await self.owner.thaw()
        if not replica.is_alive:
            raise ReplicaLost("it has gone")
        return Status(replica.task, replica.step, replica.num_steps)

    async def prepare(self, replica: SimReplica, task: Task, inputs: Sequence[tuple[Task, Any]]) -> None:
        await self._answer(replica, asyncio.sleep(0.5))

    def lend(self, replica: SimReplica, key: str, helpers: Mapping[str, Any]) -> None:
        pass

    def cancel(self, replica: SimReplica, key: str) -> None:
        if not self.owner.is_dead:
            replica.canceled.add(key)

    def halt(self, replica: SimReplica, key: str) -> None:
        if not self.owner.is_dead:
            replica.halted.add(key)

    def warm(self, replica: SimReplica, wanted: Sequence[Any]) -> None:
        pass

    def stop(self, replica: SimReplica) -> None:
        if not replica.ended.done() and not self.owner.is_dead:
            replica.ended.set_result(None)

    def reap(self) -> None:
        pass

    def is_node_alive(self, node: str) -> bool:
        return node in self.nodes()

    def nodes(self) -> list[str]:
        return [n.name for n in self.owner.nodes if n.is_alive]

    def draining(self) -> list[str]:
        return [n.name for n in self.owner.nodes if n.is_draining]

    def cluster(self) -> str:
        return f"there are {len(self.nodes())} nodes"

    async def _answer(self, replica: SimReplica, work: Coroutine[Any, Any, Any], key: str = "") -> Any:
        """What a replica says about a task, if it lives to say it; its work goes on without us."""
        try:
            await self.owner.thaw()
        except BaseException:
            work.close()
            raise
        task = self.world.spawn(work)
        await asyncio.wait([task, replica.ended], return_when=asyncio.FIRST_COMPLETED)
        if not self.world.is_exact:  # answers may be late
            await asyncio.sleep(self.world.rng.choice([0.0, 0.0, 0.0, 0.5, 5.0]))
        await self.owner.thaw()
        is_told = task.done() and task.exception() is None and self.world.rng.random() < 0.5
        if not replica.is_alive and not is_told:
            self.world.true_failures[key] += bool(replica.node and replica.node.is_alive and key in replica.begun)
            raise ReplicaLost("its process ended", self.world.rng.random() < 0.2)
        return await task
