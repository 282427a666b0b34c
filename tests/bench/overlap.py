"""How close the farm comes to the bound when the stages cost nothing but time: `make bench NAME=overlap`.

Stand-in stages sleep for fixed times in real replicas under the real controller; 1, 2 and 4 replicas in
each of three pools.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from bound import makespan_bound
from measure import save
from stand_ins.fixed import SECONDS
from timed_film import render_timed
from tiny_checkpoints import make_wan

from actors.controller import start_controller
from cluster.ray import Connection
from farm.models.checkpoint import find_checkpoint
from farm.pools.pools import Bounds, Pool, pools_as_json
from farm.store.store import Store

NUM_SHOTS = 12
POOL_OF = {"encode": "encode", "denoise": "denoise", "decode": "media", "assemble": "media"}


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="overlap-"))
    model = make_wan(folder / "wan")
    results: dict[str, Any] = {}
    for replicas in (1, 2, 4):
        results[f"{replicas} replicas"] = measure(model, folder / f"store{replicas}", replicas)
    save("overlap", {"stand-in seconds": SECONDS, "shots": NUM_SHOTS, "goal": "ratio at most 1.05", **results})


def measure(model: Path, root: Path, replicas: int) -> dict[str, float]:
    """Seconds from submitting a film until it is complete, once all replicas have started and done a warm-up film."""
    bounds = Bounds(min=replicas, max=replicas)
    pools = {
        "encode": Pool(stages=["encode"], replicas=bounds),
        "denoise": Pool(stages=["denoise"], replicas=bounds),
        "media": Pool(stages=["decode", "assemble"], replicas=bounds),
    }
    store = Store(str(root))
    store.create()
    checkpoint = find_checkpoint(str(model), beside=Path())
    connection = Connection(None, pools)
    try:
        controller = start_controller(f"overlap-{replicas}", str(root), pools_as_json(pools), package="stand_ins")
        while not all(r["node"] for r in ray.get(controller.list_replicas.remote(), timeout=60)):
            time.sleep(0.2)
        for what, num_shots in (("warm-up", 2 * replicas), ("film", NUM_SHOTS)):
            shots = [{"id": f"s{i}", "prompt": f"{what} {i}", "frames": 5, "seed": i} for i in range(num_shots)]
            board = {"size": "64x48", "guidance": 1.0, "shots": shots}
            plan, _, seconds = render_timed(controller, store, pools, board, checkpoint)
        bound = makespan_bound(
            plan.tasks, seconds=SECONDS, pool_of=POOL_OF, num_replicas=dict.fromkeys(pools, replicas)
        )
        return {"makespan_s": round(seconds, 3), "bound_s": round(bound, 3), "ratio": round(seconds / bound, 4)}
    finally:
        connection.close()


if __name__ == "__main__":
    main()
