"""How close long shots come to their bounds with stages of fixed duration: `make bench NAME=makespan`.

With 1, 2 and 4 denoise replicas: a film of 8 shots of several chunks in `extend`, against the longest chain or the
work of the busiest pool; and one long shot in `blend`, whose slices idle replicas predict, against
steps x ceil(chunks / replicas) x the time of one slice.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from math import ceil
from pathlib import Path
from typing import Any

import ray
from bound import makespan_bound
from measure import save
from stand_ins.fixed import CALL_S, SECONDS
from timed_film import render_timed

from actors.controller import start_controller
from cluster.ray import Connection
from farm.models.checkpoint import find_checkpoint
from farm.pools.pools import Bounds, Pool, pools_as_json
from farm.store.journal import read_attempts
from farm.store.store import Store

NUM_SHOTS, EXTEND_FRAMES = 8, 65  # five chunks of 17 frames that share 5
BLEND_FRAMES, BLEND_STEPS = 101, 30  # eight slices
POOL_OF = {"encode": "encode", "denoise": "denoise", "decode": "media", "assemble": "media"}


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="makespan-"))
    figures: dict[str, Any] = {"stand-in seconds": SECONDS, "a slice": CALL_S, "goals": "extend 1.08, blend 1.10"}
    for replicas in (1, 2, 4):
        figures[f"{replicas} replicas"] = measure(folder / f"store{replicas}", replicas)
    save("makespan", figures)


def measure(root: Path, replicas: int) -> dict[str, Any]:
    many = Bounds(min=replicas, max=replicas)
    pools = {
        "encode": Pool(stages=["encode"]),
        "denoise": Pool(stages=["denoise"], replicas=many),
        "media": Pool(stages=["decode", "assemble"], replicas=many),
    }
    store = Store(str(root))
    store.create()
    with closing(Connection(None, pools)):
        controller = start_controller(f"makespan-{replicas}", str(root), pools_as_json(pools), package="stand_ins")
        while not all(r["node"] for r in ray.get(controller.list_replicas.remote(), timeout=60)):
            time.sleep(0.2)
        builtin = find_checkpoint("builtin", beside=Path())
        warm = [{"id": f"w{i}", "prompt": f"warm {i}", "frames": 9, "seed": i} for i in range(2 * replicas)]
        render_timed(controller, store, pools, {"guidance": 1.0, "shots": warm}, builtin)
        shots = [{"id": f"s{i}", "prompt": f"a {i}", "frames": EXTEND_FRAMES, "seed": i} for i in range(NUM_SHOTS)]
        plan, _, seconds = render_timed(controller, store, pools, {"guidance": 1.0, "shots": shots}, builtin)
        numbers = {"encode": 1, "denoise": replicas, "media": replicas}
        bound = makespan_bound(plan.tasks, seconds=SECONDS, pool_of=POOL_OF, num_replicas=numbers)
        take = {"id": "take", "prompt": "a take", "frames": BLEND_FRAMES, "steps": BLEND_STEPS}
        board = {"guidance": 1.0, "shots": [take | {"continuity": {"mode": "blend"}}]}
        plan, job, _ = render_timed(controller, store, pools, board, builtin)
        (row,) = (a for a in read_attempts(store, job.id) if a.stage == "denoise")
        (slices,) = (len(t.request.slices) for t in plan.tasks.values() if t.stage == "denoise")
        least = BLEND_STEPS * ceil(slices / replicas) * CALL_S
        extend = {"makespan_s": seconds, "bound_s": bound, "ratio": seconds / bound}
        blend = {"denoise_s": row.run_s, "bound_s": least, "ratio": row.run_s / least, "slices": slices}
        told = {"extend": extend, "blend": blend | {"given to helpers": row.info["slices_given"]}}
        return {way: {k: round(v, 3) for k, v in figures.items()} for way, figures in told.items()}


if __name__ == "__main__":
    main()
