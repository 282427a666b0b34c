"""Start and stop the replicas of a pool: the only place that knows how a pool's hardware is said in Ray's words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import ray

from farm.pools import NodeFacts, Pool, numerics_of, stages_of

from .replica import Replica, ReplicaSpec


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


def start_replica(name: str, pools: Mapping[str, Pool], pool_name: str, *, store_uri: str, package: str) -> Any:
    """Ask Ray for one more replica; it exists once `where` answers."""
    pool = pools[pool_name]
    stages = tuple(stages_of(pools, pool_name))
    spec = ReplicaSpec(
        name=name, pool=pool_name, stages=stages, cpus=pool.cpus, gpus=pool.gpus, store_uri=store_uri, package=package,
        numerics={s: dict(numerics_of(pool, s)) for s in stages if s not in ("assemble",)},
    )  # fmt: skip
    actor = ray.remote(concurrency_groups={"io": 2, "store": 2})(Replica)
    return actor.options(**ray_options(pool)).remote(spec)


def stop_replica(handle: Any) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(handle, no_restart=True)


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
