"""What pools of several ranks mean for a film: how each of its tasks is shared, and whether that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farm.errors import InputError
from farm.models.checkpoint import Checkpoint
from farm.plan.plan import Plan
from farm.pools.parallel import Degrees, Estimate, Hardware, Sharing, Work, estimate, work_of_request
from farm.pools.pools import ACCELERATOR_GIB, NodeFacts, Pool, Room, pools_serving
from farm.task import Denoise, Roll

GPUS_PER_NODE = 8  # of the nodes that are rented with large GPUs; a gang of more spans several


def sharing_of(pool: Pool) -> Sharing | None:
    """How a pool's ranks share a task; None where a replica is one process."""
    if pool.ranks == 1:
        return None
    hardware = Hardware(
        min(pool.ranks, GPUS_PER_NODE), pool.accelerator, pool.gpus * ACCELERATOR_GIB.get(pool.accelerator or "", 0)
    )
    if pool.parallel == "auto":
        return Sharing(pool.ranks, None, False, hardware)
    how = pool.parallel
    return Sharing(pool.ranks, Degrees(how.ulysses, how.ring, how.guidance), how.shard_weights, hardware)


def check_gangs(pools: Mapping[str, Pool], plan: Plan, models: Sequence[Checkpoint]) -> dict[str, Estimate]:
    """How the most expensive denoise task of a film is shared in each pool of several ranks, by the pool's name.

    Raises:
        InputError: a task cannot be shared as a pool says.
    """
    cards = {m.place: m.card for m in models}
    works: dict[Any, Work] = {}
    for task in plan.tasks.values():
        request = task.request.request if isinstance(task.request, Roll) else task.request
        if isinstance(request, Denoise):
            works[task.model, request.latent_shape, request.slices] = work_of_request(cards[task.model], request)
    found: dict[str, Estimate] = {}
    for name in pools_serving(pools, "denoise"):
        sharing = sharing_of(pools[name])
        if sharing is not None and works:
            try:
                made = [estimate(sharing.degrees_for(work), work, sharing.hardware) for work in works.values()]
            except InputError as e:
                raise e.at(key=f"pools.{name}.parallel") from None
            found[name] = max(made, key=lambda e: e.step_s)
    return found


def is_within_a_node(pool: Pool, nodes: Sequence[NodeFacts]) -> bool:
    """Whether some node has room for a whole gang when it is empty: then it shall not be spread over several."""
    return any(all(room.take(pool) for _ in range(pool.ranks)) for room in map(Room, nodes))
