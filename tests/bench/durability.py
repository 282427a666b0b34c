"""What checkpoints and the ledger cost: `make bench NAME=durability` (about 40 minutes).

The same film, with and without, in alternating pairs, each side in a fresh process with one replica and one torch
thread, counted after a warm-up in CPU seconds of all processes. *With* keeps a step checkpoint every second of
denoising, thirty times as often as by default; *without* keeps none and writes neither attempts nor ledger.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import cpu_seconds_of_tree, save, spread

NUM_SHOTS, PAIRS, STEPS = 6, 10, 600
INTERVAL_S = 1.0


def main() -> None:
    from tiny_checkpoints import make_wan

    model = make_wan(Path(tempfile.mkdtemp(prefix="durability-")) / "wan", layers=4, heads=8, scheduler="euler")
    pairs = [{side: json.loads(run(side, model)) for side in order(i)} for i in range(PAIRS)]
    ratios = [p["with"]["cpu_s"] / p["without"]["cpu_s"] for p in pairs]
    mean, error = statistics.mean(ratios), statistics.stdev(ratios) / len(ratios) ** 0.5
    save(
        "durability",
        {
            "shots": NUM_SHOTS, "steps": STEPS, "interval_s": INTERVAL_S, "goal": "at most 3 % more CPU seconds",
            "cpu_ratio": spread(ratios), "mean": mean, "mean_95": [mean - 2.26 * error, mean + 2.26 * error],
            "checkpoints": pairs[0]["with"]["checkpoints"], "checkpoint_bytes": pairs[0]["with"]["bytes"],
            "with_cpu_s": spread([p["with"]["cpu_s"] for p in pairs]),
            "without_cpu_s": spread([p["without"]["cpu_s"] for p in pairs]),
        },
    )  # fmt: skip


def order(pair: int) -> list[str]:
    return ["with", "without"] if pair % 2 else ["without", "with"]


def run(side: str, model: Path) -> str:
    done = subprocess.run(
        [sys.executable, __file__, side, str(model)], stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def film(side: str, model: str) -> dict[str, Any]:
    """One film in an empty store, on a Ray of its own."""
    from cluster.ray import Connection
    from farm.film.film import job_id_of
    from farm.models.checkpoint import find_checkpoint
    from farm.pools.pools import Checkpoint, Pool, pools_as_json
    from farm.store.jobs import Job, write_job
    from farm.store.journal import read_attempts
    from farm.store.store import Store

    every = Checkpoint(seconds=INTERVAL_S if side == "with" else 0.0)
    pools = {"all": Pool(stages=["encode", "denoise", "decode", "assemble"], checkpoint=every)}
    connection = Connection(None, pools)
    import ray
    from doors import submit, wait_for_end
    from in_process import resolve_board

    from actors.controller import Controller, start_controller

    root = tempfile.mkdtemp(prefix="durability-store-")
    store = Store(root)
    store.create()
    checkpoint = find_checkpoint(model, beside=Path())
    if side == "with":
        controller = start_controller("bench", root, pools_as_json(pools))
    else:
        controller = ray.remote(without_records(Controller)).remote(
            "bench", root, pools_as_json(pools), "pipelines", False
        )

    def render(first: int, count: int, steps: int) -> str:
        shots = [
            {"id": f"s{i}", "prompt": f"a red ball {i}", "frames": 17, "seed": i} for i in range(first, first + count)
        ]
        board = {"size": "128x96", "fps": 8, "steps": steps, "guidance": 5.0, "shots": shots}
        made = resolve_board(board, checkpoint).film
        job = Job(job_id_of(made, checkpoint), made, (checkpoint,), "")
        write_job(store, job)
        view = wait_for_end(controller, submit(controller, job.id))
        assert view["status"] == "completed", view
        return job.id

    render(1000, 1, 10)
    cpu, started = cpu_seconds_of_tree(os.getpid()), time.monotonic()
    job = render(0, NUM_SHOTS, STEPS)
    answer = {"cpu_s": cpu_seconds_of_tree(os.getpid()) - cpu, "wall_s": time.monotonic() - started}
    kept = sum(a.info.get("checkpoints", 0) for a in read_attempts(store, job))
    connection.close()
    return {**answer, "checkpoints": kept, "bytes": checkpoint_bytes()}


def checkpoint_bytes() -> int:
    """The size of one, of this film's latents."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from pipelines.checkpoint import StepState, pack

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    return len(pack(StepState(1, torch.zeros(1, 16, 5, 12, 16)), scheduler))


def without_records(controller: Any) -> Any:
    """A controller that notes no attempts."""

    class Forgetful(controller):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            from farm.control import attempts
            from farm.store import ledger

            attempts.write_attempt = lambda *told: None  # type: ignore[assignment]
            ledger.compact = lambda *told: []  # type: ignore[assignment]
            super().__init__(*args)

    return Forgetful


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(json.dumps(film(sys.argv[1], sys.argv[2])))
