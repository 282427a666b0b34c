"""The replicas of the pools: starting, watching and stopping them, in Ray's words.

How many there should be is decided in farm/scaling.py; what runs on them in farm/dispatch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from farm.pools import NodeFacts, Pool, asked, numerics_of, stages_of
from farm.scaling import may_leave, num_replicas_wanted

from .replica import Replica, ReplicaSpec, Status


@dataclass
class Slot:
    """One replica as the controller sees it."""

    name: str
    pool: str
    handle: Any
    node: str = ""  # empty until it has started
    pid: int = 0
    busy: str | None = None  # key of the task it runs
    lent_to: str = ""  # key of the task, run by another replica, that it predicts slices for while it is idle
    is_prepared: bool = False  # for that
    idle_since: float = 0.0
    status: Status | None = None

    def free(self) -> None:
        self.busy, self.idle_since, self.status = None, time.monotonic(), None


class Replicas:
    """All replicas of a farm, those that are still starting included."""

    def __init__(self, pools: Mapping[str, Pool], *, store_uri: str, package: str) -> None:
        self.pools, self.store_uri, self.package = pools, store_uri, package
        self.stages = {name: stages_of(pools, name) for name in pools}
        self.slots: dict[str, Slot] = {}
        self.numbers = itertools.count()

    def of(self, pool: str) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.pool == pool]

    def scale(self, name: str, *, waiting: int) -> list[Slot]:
        """Bring a pool nearer to the size that its work asks for. Returns the replicas that were asked for."""
        bounds, slots = self.pools[name].replicas, self.of(name)
        busy = sum(slot.busy is not None for slot in slots)
        wanted = num_replicas_wanted(waiting=waiting, busy=busy, least=bounds.min, most=bounds.max)
        asked_for = [self._start(name) for _ in range(wanted - len(slots))]
        now, left = time.monotonic(), len(slots)
        for slot in slots:
            is_idle = slot.node and slot.busy is None and not slot.lent_to
            if is_idle and may_leave(idle_s=now - slot.idle_since, num_replicas=left, wanted=wanted):
                self.drop(slot)
                left -= 1
        return asked_for

    async def wait_for_start(self, slot: Slot) -> str:
        """Wait until a replica answers. Returns why it will not, or nothing."""
        pool = self.pools[slot.pool]
        try:
            slot.node, slot.pid = await asyncio.wait_for(slot.handle.where.remote(), pool.start_timeout_s)
        except TimeoutError:
            self.drop(slot)
            has = "; ".join(f"{n.cpus:g} CPU, {n.gpus:g} GPU" for n in cluster_nodes())
            return (
                f"pool {slot.pool} asked for {asked(pool)} and got none in {pool.start_timeout_s:g} s; there is {has}"
            )
        except ray.exceptions.RayError as e:
            self.drop(slot)
            return f"a replica of pool {slot.pool} could not start: {str(e).strip().splitlines()[-1]}"
        slot.idle_since = time.monotonic()
        return ""

    def drop(self, slot: Slot) -> None:
        """Stop a replica and forget it."""
        self.slots.pop(slot.name, None)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(slot.handle, no_restart=True)

    def _start(self, name: str) -> Slot:
        pool, stages = self.pools[name], tuple(self.stages[name])
        replica = f"{name}-{next(self.numbers)}"
        spec = ReplicaSpec(
            name=replica, pool=name, stages=stages, cpus=pool.cpus, gpus=pool.gpus, store_uri=self.store_uri,
            package=self.package, numerics={s: dict(numerics_of(pool, s)) for s in stages if s != "assemble"},
        )  # fmt: skip
        actor = ray.remote(concurrency_groups={"io": 2, "store": 2})(Replica)
        slot = self.slots[replica] = Slot(replica, name, actor.options(**ray_options(pool)).remote(spec))
        return slot


def ray_options(pool: Pool) -> dict[str, Any]:
    """A pool's hardware as options of a Ray actor."""
    options: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_restarts": 0, "max_task_retries": 0}
    if pool.memory_gib:
        options["memory"] = int(pool.memory_gib * 2**30)
    if pool.accelerator:
        options["accelerator_type"] = pool.accelerator
    if pool.labels:
        options["label_selector"] = dict(pool.labels)
    return options


def cluster_nodes() -> list[NodeFacts]:
    """What the nodes of the connected cluster have."""
    facts = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        kinds = [k.removeprefix("accelerator_type:") for k in has if k.startswith("accelerator_type:")]
        facts.append(
            NodeFacts(
                node=node["NodeID"], cpus=has.get("CPU", 0), gpus=has.get("GPU", 0), memory_bytes=has.get("memory", 0),
                accelerator=kinds[0] if kinds else None, labels=node.get("Labels", {}),
            )
        )  # fmt: skip
    return facts


def is_node_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def can_grow() -> bool:
    """Whether an autoscaler may add nodes: it reports what it could start, and a fixed cluster reports nothing."""
    from ray._private.state import state  # Ray has no public way to ask; Ray Data and Train ask in this way too

    return state.get_max_resources_from_cluster_config() is not None
