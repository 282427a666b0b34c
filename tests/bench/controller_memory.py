"""Whether the controller's memory grows with the pixels: `make bench NAME=controller_memory`.

Two films of 12 shots on stand-in stages whose outputs have 1 KB and 20 MB each: 0.9 GB in all for the second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measure import save

SIZES = {"1 KB": 1000, "20 MB": 20_000_000}


def main() -> None:
    figures = {}
    for name, size in SIZES.items():
        command = [sys.executable, __file__, "film"]
        environment = os.environ | {"STAND_IN_BYTES": str(size)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
        figures[f"controller's peak MiB with outputs of {name}"] = float(done.stdout.splitlines()[-1])
    save("controller_memory", figures)


def film() -> float:
    """Peak memory of the controller's process in MiB, sampled while a film is made."""
    from cluster.ray import Connection
    from farm.pools.pools import Bounds, Pool, pools_as_json

    pools = {"all": Pool(stages=["encode", "denoise", "decode", "assemble"], replicas=Bounds(min=4, max=4))}
    connection = Connection(None, pools)
    import ray
    from doors import submit
    from in_process import resolve_board
    from tiny_checkpoints import make_wan

    from actors.controller import start_controller
    from farm.film.film import job_id_of
    from farm.models.checkpoint import find_checkpoint
    from farm.states import ENDED
    from farm.store.jobs import Job, write_job
    from farm.store.store import Store

    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    checkpoint = find_checkpoint(str(make_wan(folder / "wan")), beside=Path())
    store = Store(str(folder / "store"))
    store.create()
    shots = [{"id": f"s{i}", "prompt": f"x {i}", "frames": 5} for i in range(12)]
    made = resolve_board({"size": "64x48", "guidance": 1.0, "shots": shots}, checkpoint).film
    job = Job(job_id_of(made, checkpoint), made, (checkpoint,), "")
    write_job(store, job)
    controller = start_controller("memory", store.root, pools_as_json(pools), package="stand_ins")
    name = submit(controller, job.id)
    everybody = psutil.Process().children(recursive=True)
    process = next(p for p in everybody if "ray::Controller" in " ".join(p.cmdline()))
    peak = 0
    while ray.get(controller.view.remote(name), timeout=60)["status"] not in ENDED:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.05)
    connection.close()
    return peak / 2**20


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(film())
    else:
        main()
