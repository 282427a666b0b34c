"""What a cluster that can grow may refuse: only what no kind of node could ever hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from farm.errors import Problem
from farm.pools.pools import NodeFacts, Pool, Room, asked, cannot_fit


@dataclass(frozen=True)
class Growth:
    """Whether a cluster adds nodes, and of which kinds; of no kinds where those are not known."""

    kind: Literal["fixed", "grows", "unknown"]
    version: str = ""  # of Ray's autoscaler: v1 or v2
    types: tuple[NodeFacts, ...] = ()


def accelerator_in(resources: Mapping[str, float]) -> str | None:
    """The kind of GPU among a node's resources, as Ray names it."""
    kinds = (k.removeprefix("accelerator_type:") for k in resources if k.startswith("accelerator_type:"))
    return next(kinds, None)


def can_never_fit(pools: Mapping[str, Pool], nodes: Sequence[NodeFacts], growth: Growth) -> list[Problem]:
    """Pools that the cluster can never hold. How many nodes of a kind there may be is left out: what is full now may
    be free later."""
    if growth.kind == "fixed":
        return cannot_fit(pools, nodes)
    if growth.kind == "unknown" or not growth.types:
        return []
    found = []
    able = [*nodes, *growth.types]
    for name, pool in pools.items():
        if not any(Room(node).take(pool) for node in able):
            one = asked(pool.model_copy(update={"ranks": 1}))
            kinds = "; ".join(f"{t.node}: {t.cpus:g} CPU, {t.gpus:g} GPU {t.accelerator or ''}".strip() for t in able)
            words = f"pool {name} asks for {one}, which no node has and no kind of node that may be added: {kinds}"
            found.append(Problem(words, f"pools.{name}"))
    return found


def ignored_labels(pools: Mapping[str, Pool], growth: Growth) -> list[str]:
    """Warnings: Ray's first autoscaler adds nodes without a look at labels, so pools must differ in more than those."""
    if growth.version != "v1":
        return []
    plain = {name: pool.model_copy(update={"labels": {}}) for name, pool in pools.items()}
    return [
        f"pools {one} and {other} differ by labels alone, which the cluster's autoscaler (v1) does not look at: it may "
        "start and stop nodes of the wrong kind again and again; give them an accelerator, or use autoscaler v2"
        for one, other in combinations(pools, 2)
        if pools[one].labels != pools[other].labels and asked(plain[one]) == asked(plain[other])
    ]  # fmt: skip
