"""A batch of 1,000 rows as a Ray job, undisturbed and killed twice, beside Ray Data: `make bench NAME=batch_rate`.

It takes about 15 minutes.

On a Ray of its own with a dashboard (`ray start --head --block`), stand-in stages, three replicas: one for each of
encoding, denoising (0.2 s a film) and the rest. The second run's driver is killed by SIGKILL, and, when it has been
submitted again, stopped by `ray job stop` while the controller is killed by SIGKILL. A film counts when it lies in the
store; a driver is up from the moment that its job has been submitted. Ray Data runs the same stages in three pools of
one actor each (`map_batches`), and writes each film into a folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from emulated_cluster import head_node
from farm_process import wait_until
from measure import save

ROWS = int(os.environ.get("BATCH_ROWS", "1000"))
KILL_AFTER = (0.25, 0.55)  # of the rows
SECONDS = {"encode": 0.02, "denoise": 0.2, "decode": 0.02, "assemble": 0.02}
TEMPLATE = """\
title: "{name}"
size: 64x48
fps: 8
steps: 4
guidance: 1.0
seed: "{seed}"
shots:
  - {id: one, prompt: "a ball of kind {seed} rolls over grass", frames: 9}
"""
POOLS = """\
pools:
  encode: {stages: [encode], replicas: {min: 1, max: 1}}
  denoise: {stages: [denoise], replicas: {min: 1, max: 1}}
  media: {stages: [decode, interpolate, upscale, assemble], replicas: {min: 1, max: 1}}
"""
JOB_S = 1500.0
BIN = Path(sys.executable).parent


def cli(dashboard: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), *words]
    environment = os.environ | {"RAY_ADDRESS": dashboard}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


class Batch:
    """One batch in a store of its own."""

    def __init__(self, folder: Path, dashboard: str, name: str) -> None:
        self.folder, self.dashboard, self.name, self.runs = folder / name, dashboard, name, 0
        self.folder.mkdir()
        rows = [{"name": f"film {i}", "seed": i} for i in range(ROWS)]
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "films.parquet")
        (self.folder / "template.yaml").write_text(TEMPLATE)
        (self.folder / "pools.yaml").write_text(POOLS)
        self.store = self.folder / "store"
        self.up: list[tuple[float, float]] = []  # when a driver was

    def start_controller(self) -> Any:
        """The batch's controller, with stand-ins for its stages."""
        from actors.controller import start_controller
        from cluster.prepare import farm_name
        from farm.pools.pools import load_pools, pools_as_json
        from farm.store.store import Store

        store = Store(str(self.store))
        store.create()
        pools = pools_as_json(load_pools(self.folder / "pools.yaml"))
        controller = start_controller(*farm_name(store, pools), pools, package="stand_ins", adopts=True)
        time.sleep(15)  # replicas load
        return controller

    def submit(self) -> None:
        self.runs += 1
        name = f"{self.name}-{self.runs}"
        command = ["farm", "batch", "films.parquet", "--template", "template.yaml", "--pools", "pools.yaml"]
        command = [w if "." not in w else str(self.folder / w) for w in command]
        command += ["--store", str(self.store), "--results", str(self.folder / "results")]
        done = cli(self.dashboard, "job", "submit", "--no-wait", "--submission-id", name, "--", *command)
        assert done.returncode == 0, done.stdout + done.stderr
        self.id = name
        self.up.append((time.time(), 0.0))

    def down(self) -> None:
        self.up[-1] = (self.up[-1][0], time.time())

    def films(self) -> list[float]:
        """When each film was there."""
        return [path.stat().st_mtime for path in self.store.glob("films/*/film.mp4")]

    def status(self) -> str:
        return str(httpx2.get(f"{self.dashboard}/api/jobs/{self.id}", timeout=30).json()["status"])

    def wait_for_films(self, count: int) -> None:
        wait_until(f"{count} films", lambda: len(self.films()) >= count or time.sleep(0.5), timeout_s=JOB_S)

    def wait_for_end(self) -> None:
        wait_until("the job's end", lambda: self.status() in ("SUCCEEDED", "FAILED") or time.sleep(2), timeout_s=JOB_S)
        self.down()
        assert self.status() == "SUCCEEDED", cli(self.dashboard, "job", "logs", self.id).stdout[-3000:]

    def told(self) -> dict[str, Any]:
        from farm.store.journal import read_attempts
        from farm.store.store import Store

        tables = [pq.read_table(p) for p in sorted((self.folder / "results").glob("*.parquet"))]
        rows = [row for table in tables for row in table.to_pylist()]
        store = Store(str(self.store))
        tries = [a for job in {r["job"] for r in rows} for a in read_attempts(store, job)]
        done = Counter(a.task for a in tries if a.outcome == "succeeded")
        made = self.films()
        seconds = sum(b - a for a, b in self.up)
        in_time = sum(any(a <= at <= b for a, b in self.up) for at in made)
        return {
            "results": len(rows), "rows": len({r["row"] for r in rows}), "films": len(made),
            "statuses": dict(Counter(r["status"] for r in rows)),
            "tasks": len(done), "repeated": sum(done.values()) - len(done),
            "not_succeeded": dict(Counter(a.outcome for a in tries if a.outcome != "succeeded")),
            "first_film_after_s": round(min(made) - self.up[0][0], 1),
            "driver_up_s": round(seconds, 1), "films_while_up": in_time, "films_per_s": round(in_time / seconds, 3),
            "all_s": round(self.up[-1][1] - self.up[0][0], 1),
        }  # fmt: skip


def kill(words: Sequence[str], *, title: str = "") -> None:
    """End the processes whose command line has these words, or begins with this title: a driver has a shell."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            is_titled = bool(title and line and line[0].startswith(title))
            if is_titled or (words and all(any(w in part for part in line) for w in words)):
                found.append(process)
    assert found, (words, title)
    for process in found:
        process.kill()


def killed_twice(batch: Batch) -> None:
    batch.submit()
    batch.wait_for_films(int(KILL_AFTER[0] * ROWS))
    kill(["farm", "batch", str(batch.folder)])
    batch.down()
    wait_until("Ray to notice", lambda: batch.status() == "FAILED" or time.sleep(1), timeout_s=60)
    batch.submit()
    batch.wait_for_films(int(KILL_AFTER[1] * ROWS))
    batch.down()
    kill([], title="ray::Controller")
    done = cli(batch.dashboard, "job", "stop", batch.id)
    assert done.returncode == 0, done.stderr
    batch.submit()
    batch.wait_for_end()


# -- the peer


def make_stage(stage: str) -> type:
    """One of the farm's stages as Ray Data wants it."""

    class Apply:
        def __init__(self) -> None:
            import importlib

            self.stage = importlib.import_module(f"stand_ins.{stage}").Stage()

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            from pipelines.stage import Progress

            request: Any = SimpleNamespace(slices=())
            made = [bytes(self.stage.run(request, [], Progress()).artifact) for _ in batch["seed"]]
            return {**batch, "bytes": made}

    return Apply


class Finish:
    """Decoding and assembling, and the film's file."""

    def __init__(self, folder: str) -> None:
        self.stages, self.folder = [make_stage(s)() for s in ("decode", "assemble")], Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for stage in self.stages:
            batch = stage(batch)
        for seed, data in zip(batch["seed"], batch["bytes"], strict=True):
            (self.folder / f"{seed}.mp4").write_bytes(data)
        return batch


def ray_data(folder: Path) -> dict[str, Any]:
    import ray

    films = folder / "ray_data"
    films.mkdir()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    one = ray.data.ActorPoolStrategy(size=1)
    start = time.time()
    rows = ray.data.from_items([{"name": f"film {i}", "seed": i} for i in range(ROWS)], override_num_blocks=ROWS // 4)
    for stage in ("encode", "denoise"):
        rows = rows.map_batches(make_stage(stage), batch_size=1, compute=one)
    rows = rows.map_batches(Finish, fn_constructor_args=(str(films),), batch_size=1, compute=one)
    rows.write_parquet(str(folder / "ray_data_results"))
    took = time.time() - start
    made = len(list(films.glob("*.mp4")))
    first = min(p.stat().st_mtime for p in films.glob("*.mp4"))
    return {
        "films": made, "all_s": round(took, 1), "films_per_s": round(made / took, 3),
        "first_film_after_s": round(first - start, 1),
    }  # fmt: skip


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="batch-", dir="/tmp"))
    os.environ["RAY_AUTH_MODE"] = "disabled"
    here = Path(__file__).parent
    environment = {
        "STAND_IN_S": json.dumps(SECONDS), "PYTHONPATH": f"{here}:{here.parent}", "PATH": f"{BIN}:{os.environ['PATH']}",
    }  # fmt: skip
    with head_node(num_cpus=8, **environment) as (address, dashboard):
        import ray

        ray.init(address=address, log_to_driver=False, logging_level="error", namespace="longtake")
        figures: dict[str, Any] = {
            "goals": "each film once; at most 3 tasks repeated a kill; 0.95 of the rate; not slower than Ray Data",
            "rows": ROWS, "seconds_of_stages": SECONDS, "bound_films_per_s": 1 / SECONDS["denoise"],
        }  # fmt: skip
        for name in ("undisturbed", "killed"):
            batch = Batch(folder, dashboard, name)
            controller = batch.start_controller()
            if name == "killed":
                killed_twice(batch)
            else:
                batch.submit()
                batch.wait_for_end()
            figures[name] = batch.told()
            print(name, json.dumps(figures[name], indent=1), file=sys.stderr)
            with suppress(ray.exceptions.RayError):
                ray.get(controller.close.remote(), timeout=30)
            with suppress(Exception):
                ray.kill(controller)
        figures["ray_data"] = ray_data(folder)
        ray.shutdown()
    rate = figures["undisturbed"]["films_per_s"]
    figures["killed_to_undisturbed"] = round(figures["killed"]["films_per_s"] / rate, 3)
    figures["farm_to_ray_data"] = round(rate / figures["ray_data"]["films_per_s"], 3)
    save("batch_rate", figures)


if __name__ == "__main__":
    main()
