"""Replicas in Ray's words: how they are started, used, watched and stopped, and what a cluster has.

How many there should be is decided in farm/control/scaling.py; what runs on them in farm/control/dispatch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from actors.gang import GROUPS, Leader, first_line, in_bundle
from actors.logs import last_lines, last_lines_elsewhere, own_folder
from actors.replica import Replica
from farm.control.fleet import Ran, ReplicaSpec, Status
from farm.errors import FarmError, ReplicaLost
from farm.pools.gangs import is_within_a_node
from farm.pools.growth import accelerator_in
from farm.pools.pools import NodeFacts, Pool
from farm.task import Task

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Ray's errors as the farm's."""
    try:
        yield
    except ray.exceptions.ActorUnavailableError as e:
        raise ReplicaLost(first_line(e), is_unreachable=True) from e
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, FarmError | OSError):
            raise e.cause from e
        raise
    except ray.exceptions.RayError as e:
        raise ReplicaLost(first_line(e)) from e


class RayHands:
    """`farm.control.fleet.Hands` on a Ray cluster."""

    def __init__(self, farm: str) -> None:
        self.words = itertools.count(1)  # to replicas, on their helpers
        self.prefix = f"longtake.{farm}."  # of the names of placement groups, whichever controller has made them
        self.token = f"{self.prefix}{secrets.token_hex(4)}."  # and of this one's
        self.groups: dict[Any, tuple[str, PlacementGroup]] = {}  # of the gangs that live, by their leader

    def start(self, spec: ReplicaSpec, pool: Pool, *, avoid: Sequence[str]) -> Any:
        if spec.sharing is None:
            actor = ray.remote(concurrency_groups=GROUPS)(Replica)
            return actor.options(**ray_options(pool, avoid=avoid)).remote(spec)
        name = f"{self.token}{spec.name}"
        group = ray.util.placement_group(name=name, **group_options(pool, cluster_nodes(), avoid=avoid))
        leader = ray.remote(concurrency_groups=GROUPS)(Leader).options(**in_bundle(group, 0, spec)).remote(spec)
        self.groups[leader] = (name, group)
        return leader

    async def place(self, handle: Any) -> tuple[str, int]:
        with _in_our_words():
            node, pid = await handle.where.remote()
            return node, pid

    async def run(self, handle: Any, task: Task, inputs: Sequence[tuple[Task, Any]], *, frugal: bool) -> Ran:
        with _in_our_words():
            ran: Ran = await handle.run.remote(task, inputs, frugal)
            return ran

    async def persist(self, handle: Any, key: str) -> int:
        with _in_our_words():
            return int(await handle.persist.remote(key))

    async def status(self, handle: Any) -> Status:
        with _in_our_words():
            status: Status = await handle.status.remote()
            return status

    async def last_words(self, node: str, pid: int) -> str:
        if node == ray.get_runtime_context().get_node_id():  # process ids repeat from node to node
            return await asyncio.to_thread(last_lines, own_folder(), pid)
        return await asyncio.to_thread(last_lines_elsewhere, node, pid)

    async def prepare(self, handle: Any, task: Task, inputs: Sequence[tuple[Task, Any]]) -> None:
        try:
            with _in_our_words():
                await handle.prepare.remote(task, inputs)
        except (ray.exceptions.RayTaskError, FarmError, OSError) as e:
            raise ReplicaLost(f"it cannot help: {first_line(e)}") from e

    def lend(self, handle: Any, key: str, helpers: Mapping[str, Any]) -> None:
        handle.lend.remote(next(self.words), key, dict(helpers))

    def cancel(self, handle: Any, key: str) -> None:
        handle.cancel.remote(key)

    def halt(self, handle: Any, key: str) -> None:
        handle.halt.remote(key)

    def warm(self, handle: Any, wanted: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> None:
        handle.warm.remote(wanted)

    def stop(self, handle: Any) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(handle, no_restart=True)
        with contextlib.suppress(ray.exceptions.RayError):
            if handle in self.groups:  # every process in it ends
                ray.util.remove_placement_group(self.groups.pop(handle)[1])

    def reap(self) -> None:
        ours = {name for name, _ in self.groups.values()}
        for told in ray.util.placement_group_table().values():
            name = told["name"]
            if name.startswith(self.prefix) and name not in ours and told["state"] != "REMOVED":
                log.warning("removing the placement group %s, which no gang owns", name)
                with contextlib.suppress(ValueError, ray.exceptions.RayError):  # it has gone meanwhile
                    ray.util.remove_placement_group(ray.util.get_placement_group(name))

    def is_node_alive(self, node: str) -> bool:
        return node in self.nodes()

    def nodes(self) -> list[str]:
        return [node["NodeID"] for node in ray.nodes() if node["Alive"]]

    def draining(self) -> list[str]:
        from ray._private.state import state  # Ray Serve asks in this way; there is no public one

        return list(state.get_draining_nodes())

    def cluster(self) -> str:
        return "there is " + "; ".join(f"{n.cpus:g} CPU, {n.gpus:g} GPU" for n in cluster_nodes())


def ray_options(pool: Pool, *, avoid: Sequence[str] = ()) -> dict[str, Any]:
    """A pool's hardware as options of a Ray actor that is started on any node but these."""
    options: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_restarts": 0, "max_task_retries": 0}
    if pool.memory_gib:
        options["memory"] = int(pool.memory_gib * 2**30)
    if pool.accelerator:
        options["accelerator_type"] = pool.accelerator
    labels = dict(pool.labels) | ({"ray.io/node-id": f"!in({','.join(avoid)})"} if avoid else {})
    if labels:
        options["label_selector"] = labels
    return options


def group_options(pool: Pool, nodes: Sequence[NodeFacts], *, avoid: Sequence[str] = ()) -> dict[str, Any]:
    """A gang's hardware as a placement group: on one node where one has room for all ranks, else on few."""
    one = ray_options(pool, avoid=avoid)
    bundle = {"CPU": one["num_cpus"], "GPU": one["num_gpus"], "memory": one.get("memory", 0)}
    if pool.accelerator:
        bundle[f"accelerator_type:{pool.accelerator}"] = 0.001
    options: dict[str, Any] = {
        "bundles": [{k: v for k, v in bundle.items() if v}] * pool.ranks,
        "strategy": "STRICT_PACK" if is_within_a_node(pool, [n for n in nodes if n.node not in avoid]) else "PACK",
    }
    labels = one.get("label_selector")
    return options | ({"bundle_label_selector": [labels] * pool.ranks} if labels else {})


def cluster_nodes() -> list[NodeFacts]:
    """What the nodes of the connected cluster have."""
    facts = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        facts.append(
            NodeFacts(
                node=node["NodeID"], cpus=has.get("CPU", 0), gpus=has.get("GPU", 0), memory_bytes=has.get("memory", 0),
                accelerator=accelerator_in(has), labels=node.get("Labels", {}),
            )
        )  # fmt: skip
    return facts
